//! From settings to an open object store. Must never read an environment variable of this node's
//! own, nor let an option's value out: it may be a secret.

use super::answer::Connector;
use object_store::{
    ClientConfigKey, ClientOptions, HeaderMap, HeaderValue, ObjectStore, ObjectStoreScheme,
    RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, http::HttpBuilder, local::LocalFileSystem, path::Path,
};
use reqwest::Url;
use std::{fmt, sync::Arc, time::Duration};

/// The option of `http` and `https` that holds the header of this name, for caches that ask for
/// one. The other stores' options are the library's.
const AUTHORIZATION: &str = "authorization";

/// A shorter value of an option is a number or a switch, and no secret.
const SECRET_CHARS_MIN: usize = 6;

/// Which object store, and how it is asked.
#[derive(Clone)]
pub(crate) struct ObjectSettings {
    /// `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///directory`, `http(s)://host/prefix`.
    pub(crate) url: String,
    /// Options of the store by the names that `object_store` gives them: `aws_endpoint`,
    /// `aws_region`, `allow_http`…; they go before the store's environment variables (AWS_…).
    /// For `http` and `https` also `authorization`, the header of that name.
    pub(crate) options: Vec<(String, String)>,
    /// Requests to the store at a time, all callers together.
    pub(crate) concurrency: usize,
    /// Time to connect in.
    pub(crate) connect_timeout: Duration,
    /// Time for an answer: its head where a blob is read in pieces, all of it otherwise.
    pub(crate) request_timeout: Duration,
    /// Time between two pieces of a blob.
    pub(crate) idle_timeout: Duration,
}

impl fmt::Debug for ObjectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectSettings")
            .field("url", &public(&self.url))
            .field("options", &self.options.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .field("concurrency", &self.concurrency)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .finish()
    }
}

/// Why settings make no object store. No message holds the value of an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ObjectSettingsError {
    /// No URL, or one of no store.
    #[error("{url:?} is no URL of an object store: s3, gs, az, file, http or https")]
    Url {
        /// The URL, without what may be secret.
        url: String,
    },
    /// A user, a password, a query or a fragment in the URL: it is shown in logs.
    #[error("{url:?}: credentials and queries belong into the options")]
    Secret {
        /// The URL, without what may be secret.
        url: String,
    },
    /// An option that this kind of store does not have.
    #[error("this store has no option {key:?}")]
    Option {
        /// Its name.
        key: String,
    },
    /// A bound of zero.
    #[error("concurrency must be at least 1")]
    Concurrency,
    /// The store's own reason.
    #[error("{0}")]
    Store(String),
}

/// A store that can be asked.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// Whether it takes a large object in parts.
    pub(super) takes_parts: bool,
}

/// Opens the store; asks it nothing yet.
pub(super) fn open(settings: &ObjectSettings) -> Result<Opened, ObjectSettingsError> {
    let bad = || ObjectSettingsError::Url { url: public(&settings.url) };
    if settings.concurrency == 0 {
        return Err(ObjectSettingsError::Concurrency);
    }
    let url = Url::parse(&settings.url).map_err(|_| bad())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !plain || url.fragment().is_some() {
        return Err(ObjectSettingsError::Secret { url: public(&settings.url) });
    }
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| bad())?;
    // The HTTP client has no provider of its own, and would panic without one. One that is there
    // already stays.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let opened = |store, takes_parts| Opened { store, prefix, takes_parts };
    match scheme {
        ObjectStoreScheme::AmazonS3 => Ok(opened(s3(&url, settings)?, true)),
        ObjectStoreScheme::GoogleCloudStorage => Ok(opened(gcs(&url, settings)?, true)),
        ObjectStoreScheme::MicrosoftAzure => Ok(opened(azure(&url, settings)?, true)),
        ObjectStoreScheme::Http => Ok(opened(http(&url, settings)?, false)),
        ObjectStoreScheme::Local => {
            let store = directory(&url, settings)?;
            Ok(Opened { store, prefix: Path::default(), takes_parts: true })
        }
        _ => Err(bad()),
    }
}

type Store = Result<Arc<dyn ObjectStore>, ObjectSettingsError>;

fn s3(url: &Url, settings: &ObjectSettings) -> Store {
    let mut builder = AmazonS3Builder::from_env()
        .with_url(url.as_str())
        .with_retry(no_retry())
        .with_http_connector(connector(settings));
    for (key, value) in &settings.options {
        builder = builder.with_config(known(key)?, value);
    }
    Ok(Arc::new(builder.build().map_err(|error| unopened(&error, settings))?))
}

fn gcs(url: &Url, settings: &ObjectSettings) -> Store {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_url(url.as_str())
        .with_retry(no_retry())
        .with_http_connector(connector(settings));
    for (key, value) in &settings.options {
        builder = builder.with_config(known(key)?, value);
    }
    Ok(Arc::new(builder.build().map_err(|error| unopened(&error, settings))?))
}

fn azure(url: &Url, settings: &ObjectSettings) -> Store {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_url(url.as_str())
        .with_retry(no_retry())
        .with_http_connector(connector(settings));
    for (key, value) in &settings.options {
        builder = builder.with_config(known(key)?, value);
    }
    Ok(Arc::new(builder.build().map_err(|error| unopened(&error, settings))?))
}

fn http(url: &Url, settings: &ObjectSettings) -> Store {
    // The URL says whether it is TLS; a switch beside it could only contradict.
    let mut client = ClientOptions::new().with_allow_http(url.scheme() == "http");
    for (key, value) in &settings.options {
        if key == AUTHORIZATION {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| ObjectSettingsError::Store(format!("{key} is no header")))?;
            value.set_sensitive(true);
            let mut headers = HeaderMap::new();
            headers.insert(http::header::AUTHORIZATION, value);
            client = client.with_default_headers(headers);
        } else {
            client = client.with_config(known::<ClientConfigKey>(key)?, value);
        }
    }
    let builder = HttpBuilder::new()
        .with_url(url.origin().ascii_serialization())
        .with_client_options(client)
        .with_retry(no_retry())
        .with_http_connector(connector(settings));
    Ok(Arc::new(builder.build().map_err(|error| unopened(&error, settings))?))
}

fn directory(url: &Url, settings: &ObjectSettings) -> Store {
    if let Some((key, _)) = settings.options.first() {
        return Err(ObjectSettingsError::Option { key: key.clone() });
    }
    let no_path = |()| ObjectSettingsError::Url { url: public(url.as_str()) };
    let path = url.to_file_path().map_err(no_path)?;
    std::fs::create_dir_all(&path)
        .map_err(|error| ObjectSettingsError::Store(error.to_string()))?;
    let store = LocalFileSystem::new_with_prefix(path);
    Ok(Arc::new(store.map_err(|error| unopened(&error, settings))?))
}

/// None: who asks tiers decides whether, when and how often one is asked again.
fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

const fn connector(settings: &ObjectSettings) -> Connector {
    Connector { connect_timeout: settings.connect_timeout }
}

/// A misspelt option is an error, where the library would pass it over.
fn known<K: std::str::FromStr>(key: &str) -> Result<K, ObjectSettingsError> {
    let unknown = |_| ObjectSettingsError::Option { key: key.to_owned() };
    key.to_ascii_lowercase().parse().map_err(unknown)
}

fn unopened(error: &object_store::Error, settings: &ObjectSettings) -> ObjectSettingsError {
    let mut text = error.to_string();
    for (_, value) in settings.options.iter().filter(|(_, value)| value.len() >= SECRET_CHARS_MIN) {
        text = text.replace(value.as_str(), "…");
    }
    ObjectSettingsError::Store(text)
}

/// A URL as it may be shown.
fn public(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "…".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only where a URL can't have them.
    let _cannot_have_one = (url.set_username(""), url.set_password(None));
    url.to_string()
}

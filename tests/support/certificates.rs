//! Certificates and keys for tests of TLS, made anew for each: good ones, expired ones and those
//! of another CA. Must never be used for anything that lasts.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tonic::transport::{ClientTlsConfig, Identity};

/// Names and addresses for which the certificates of servers stand, besides the hosts of a net.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Hosts of a net that they stand for: 10.77.0.1 to here, fd77::1 to here.
const HOSTS: u8 = 9;

const SERVER: [Usage; 1] = [Usage::ServerAuth];
const CLIENT: [Usage; 1] = [Usage::ClientAuth];
const NODE: [Usage; 2] = [Usage::ServerAuth, Usage::ClientAuth];

/// PEM files in one directory, of ECDSA P-256: `ca.pem`; certificate and key `NAME.pem` and
/// `NAME.key` of `server`, `client`, `node` (both), `person` (a client's, of a name that no host
/// has), `expired` (a server's, over since 2020) and `expired-client`; `other-ca.pem`, and of it
/// `other-server`, `other-client` and `other-node`.
///
/// All but the person's stand for localhost, 127.0.0.1, ::1 and the first nine hosts of a net.
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Writes all of them.
    ///
    /// # Panics
    /// Where the directory can't be written.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("the directory can be made");
        let own = Self { directory: directory.to_owned() };
        let ca = own.authority("ca");
        own.leaf("server", &SERVER, &ca, false);
        own.leaf("client", &CLIENT, &ca, false);
        own.leaf("node", &NODE, &ca, false);
        own.leaf("person", &CLIENT, &ca, false);
        own.leaf("expired", &SERVER, &ca, true);
        own.leaf("expired-client", &CLIENT, &ca, true);
        let other = own.authority("other-ca");
        own.leaf("other-server", &SERVER, &other, false);
        own.leaf("other-client", &CLIENT, &other, false);
        own.leaf("other-node", &NODE, &other, false);
        own
    }

    /// The path of one file, as `server.pem`.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// The text of one file.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("a file of Certificates")
    }

    /// Certificate and key of one, as `server`.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn identity(&self, name: &str) -> Identity {
        let file = |kind: &str| self.text(&format!("{name}.{kind}"));
        Identity::from_pem(file("pem"), file("key"))
    }

    /// The certificate of a CA, as `ca` or `other-ca`.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn authority_of(&self, name: &str) -> tonic::transport::Certificate {
        tonic::transport::Certificate::from_pem(self.text(&format!("{name}.pem")))
    }

    /// What a client is told: whom to believe, and whom to be.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn client(&self, authority: &str, identity: Option<&str>) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(self.authority_of(authority));
        match identity {
            Some(name) => config.identity(self.identity(name)),
            None => config,
        }
    }

    /// Writes the files of one in place of those of another, as a renewal does.
    ///
    /// # Panics
    /// Where the directory can't be written.
    pub fn put_in_place(&self, name: &str, of: &str) {
        for kind in ["pem", "key"] {
            self.write(of, kind, &self.text(&format!("{name}.{kind}")));
        }
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        self.write(name, "pem", &params.self_signed(&key).expect("a certificate").pem());
        Issuer::new(params, key)
    }

    fn leaf(&self, name: &str, usages: &[Usage], issuer: &Issuer<'_, KeyPair>, is_expired: bool) {
        let mut names: Vec<String> = NAMES.map(str::to_owned).into();
        names.extend((1..=HOSTS).flat_map(|i| [format!("10.77.0.{i}"), format!("fd77::{i}")]));
        if name == "person" {
            names = vec!["person.example".to_owned()];
        }
        let mut params = CertificateParams::new(names).expect("names and addresses");
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        if is_expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(name, "pem", &certificate.pem());
        self.write(name, "key", &key.serialize_pem());
    }

    fn write(&self, name: &str, kind: &str, text: &str) {
        fs::write(self.path(&format!("{name}.{kind}")), text)
            .expect("the directory can be written");
    }
}

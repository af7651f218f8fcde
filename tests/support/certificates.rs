//! Certificates and keys for tests of TLS, made anew for each: good ones, expired ones and those
//! of another CA. Must never be used for anything that lasts.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tonic::transport::Identity;

/// Names and addresses for which the certificates of servers stand, besides the hosts of a net.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Hosts of a net that they stand for: 10.77.0.1 to here, fd77::1 to here.
const HOSTS: u8 = 9;

/// PEM files in one directory, of ECDSA P-256: `ca.pem`; certificate and key `NAME.pem` and
/// `NAME.key` of `server`, `client`, `expired` (a server's, over since 2020) and `expired-client`;
/// `other-ca.pem`, and of it `other-server` and `other-client`.
///
/// Servers stand for localhost, 127.0.0.1, ::1 and the first nine hosts of a net.
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
        own.leaf("server", ExtendedKeyUsagePurpose::ServerAuth, &ca, false);
        own.leaf("client", ExtendedKeyUsagePurpose::ClientAuth, &ca, false);
        own.leaf("expired", ExtendedKeyUsagePurpose::ServerAuth, &ca, true);
        own.leaf("expired-client", ExtendedKeyUsagePurpose::ClientAuth, &ca, true);
        let other = own.authority("other-ca");
        own.leaf("other-server", ExtendedKeyUsagePurpose::ServerAuth, &other, false);
        own.leaf("other-client", ExtendedKeyUsagePurpose::ClientAuth, &other, false);
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

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        self.write(name, "pem", &params.self_signed(&key).expect("a certificate").pem());
        Issuer::new(params, key)
    }

    fn leaf(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        issuer: &Issuer<'_, KeyPair>,
        is_expired: bool,
    ) {
        let mut names: Vec<String> = NAMES.map(str::to_owned).into();
        names.extend((1..=HOSTS).flat_map(|i| [format!("10.77.0.{i}"), format!("fd77::{i}")]));
        let mut params = CertificateParams::new(names).expect("names and addresses");
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
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

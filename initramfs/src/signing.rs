//! Signs an EFI program with the operator's key, for Secure Boot with the operator's own certificate.
//!
//! `sbsign` does it and `sbverify` looks at the result (both of the package `sbsigntool`): the signature is
//! a security matter, and they are the reference.
//!
//! Invariant: what is returned was verified against the given certificate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::{self, CommandError};

/// Why the program is not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    /// The key or certificate could not be read.
    #[error("{path}: cannot read the {what}; {option} names it")]
    Read {
        /// Key or certificate.
        what: &'static str,
        /// Its option.
        option: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path}: not a PEM {what} (found {found}, expected {expected}). {advice}")]
    NotPem {
        /// Key or certificate.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the file begins with.
        found: String,
        /// The expected first line.
        expected: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A program is missing or refused.
    #[error(
        "the unified kernel image cannot be signed with {key} and {certificate}; check that the \
         certificate belongs to the key"
    )]
    Command {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// Why.
        source: CommandError,
    },
    /// Files on the way.
    #[error("{path}: cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The operator's key and its certificate, both PEM.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    key: PathBuf,
    certificate: PathBuf,
}

impl Signer {
    /// Looks at both files, so that a mistake shows before the long work.
    ///
    /// # Errors
    /// [`SigningError::Read`] and [`SigningError::NotPem`].
    pub(crate) fn new(key: &Path, certificate: &Path) -> Result<Self, SigningError> {
        check(
            ("key", "--key"),
            key,
            "-----BEGIN PRIVATE KEY-----",
            |label| label.ends_with("PRIVATE KEY"),
            "--key takes the private key, --certificate the certificate",
        )?;
        check(
            ("certificate", "--certificate"),
            certificate,
            "-----BEGIN CERTIFICATE-----",
            |label| label == "CERTIFICATE",
            "A DER certificate becomes PEM with `openssl x509 -inform DER -in FILE -out FILE.pem`",
        )?;
        Ok(Self {
            key: absolute(key)?,
            certificate: absolute(certificate)?,
        })
    }

    /// `program` with the signature. Files on the way are in a directory of their own in `cache`.
    ///
    /// # Errors
    /// [`SigningError::Command`] and [`SigningError::Io`].
    pub(crate) fn sign(&self, program: &[u8], cache: &Path) -> Result<Vec<u8>, SigningError> {
        let work = tempfile::Builder::new()
            .prefix(".signing-")
            .tempdir_in(cache)
            .map_err(failed("create a directory", cache))?;
        let (plain, signed) = (
            work.path().join("plain.efi"),
            work.path().join("signed.efi"),
        );
        fs::write(&plain, program).map_err(failed("write the unsigned image", &plain))?;
        let refused = |source| SigningError::Command {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
            source,
        };
        let arguments = [
            "--key".as_ref(),
            self.key.as_os_str(),
            "--cert".as_ref(),
            self.certificate.as_os_str(),
            "--output".as_ref(),
            signed.as_os_str(),
            plain.as_os_str(),
        ];
        command::run("sbsign", &arguments, work.path()).map_err(refused)?;
        let arguments = [
            "--cert".as_ref(),
            self.certificate.as_os_str(),
            signed.as_os_str(),
        ];
        command::run("sbverify", &arguments, work.path()).map_err(refused)?;
        fs::read(&signed).map_err(failed("read the signed image", &signed))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SigningError {
    let path = path.to_owned();
    move |source| SigningError::Io {
        action,
        path,
        source,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, SigningError> {
    path.canonicalize().map_err(failed("find the file", path))
}

/// Makes sure that `path` is a PEM file (RFC 7468) with a label that `fits`.
fn check(
    (what, option): (&'static str, &'static str),
    path: &Path,
    expected: &'static str,
    fits: fn(&str) -> bool,
    advice: &'static str,
) -> Result<(), SigningError> {
    let content = fs::read(path).map_err(|source| SigningError::Read {
        what,
        option,
        path: path.to_owned(),
        source,
    })?;
    // Text may stand before the label (RFC 7468 §2).
    let text = String::from_utf8_lossy(&content);
    let labels: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            let label = line.trim_end().strip_prefix("-----BEGIN ")?;
            label.strip_suffix("-----")
        })
        .collect();
    if labels.iter().any(|label| fits(label)) {
        return Ok(());
    }
    let found = match (labels.first(), content.first()) {
        (Some(label), _) => format!("a PEM {label}"),
        (None, Some(0x30)) => "DER data".to_owned(),
        (None, Some(_)) => "no PEM text".to_owned(),
        (None, None) => "an empty file".to_owned(),
    };
    Err(SigningError::NotPem {
        what,
        path: path.to_owned(),
        found,
        expected,
        advice,
    })
}

#[cfg(test)]
mod tests {
    use object::pe::IMAGE_FILE_MACHINE_AMD64;

    use super::*;
    use crate::pe::tests::fake_program;
    use crate::pe::{Section, add_sections};

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str =
        "subject=x\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn files(key: &[u8], certificate: &[u8]) -> (tempfile::TempDir, Result<Signer, SigningError>) {
        let directory = tempfile::tempdir().unwrap();
        let (k, c) = (directory.path().join("key"), directory.path().join("cert"));
        fs::write(&k, key).unwrap();
        fs::write(&c, certificate).unwrap();
        let signer = Signer::new(&k, &c);
        (directory, signer)
    }

    #[test]
    fn key_and_certificate_are_looked_at_before_the_work() {
        files(KEY.as_bytes(), CERTIFICATE.as_bytes()).1.unwrap();
        let refusals = [
            (
                CERTIFICATE.as_bytes(),
                CERTIFICATE.as_bytes(),
                "found a PEM CERTIFICATE",
            ),
            (
                KEY.as_bytes(),
                &[0x30, 0x82, 1][..],
                "openssl x509 -inform DER",
            ),
            (KEY.as_bytes(), b"", "found an empty file"),
            (b"text", CERTIFICATE.as_bytes(), "found no PEM text"),
        ];
        for (key, certificate, words) in refusals {
            let text = files(key, certificate).1.unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_missing_key_is_named_with_its_option() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.key");
        let text = Signer::new(&path, &path).unwrap_err().to_string();
        assert!(
            text.contains("none.key") && text.contains("--key"),
            "{text}"
        );
    }

    /// A key with its certificate, made by openssl(1) in `directory`.
    fn fresh_signer(directory: &Path, name: &str) -> (Signer, PathBuf) {
        let key = directory.join(format!("{name}.key"));
        let certificate = directory.join(format!("{name}.pem"));
        let made = std::process::Command::new("openssl")
            .args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-noenc"])
            .args(["-subj", "/CN=test/", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("this test needs the command openssl: install the package `openssl`");
        assert!(made.status.success(), "{made:?}");
        (Signer::new(&key, &certificate).unwrap(), certificate)
    }

    #[test]
    fn a_signature_holds_until_a_byte_of_a_section_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (signer, certificate) = fresh_signer(directory.path(), "own");
        let (_, foreign) = fresh_signer(directory.path(), "foreign");
        let sections = [Section {
            name: ".linux",
            data: &[7; 5000],
        }];
        let image = add_sections(&fake_program(), IMAGE_FILE_MACHINE_AMD64, &sections).unwrap();
        let signed = signer
            .sign(&image, directory.path())
            .expect("this test needs sbsign and sbverify: install the package `sbsigntool`");
        let path = directory.path().join("image.efi");
        let verify = |image: &[u8], certificate: &Path| {
            fs::write(&path, image).unwrap();
            let arguments = ["--cert".as_ref(), certificate.as_os_str(), path.as_os_str()];
            command::run("sbverify", &arguments, directory.path())
        };
        verify(&signed, &certificate).unwrap();
        assert!(verify(&signed, &foreign).is_err());
        let mut altered = signed.clone();
        let at = altered
            .windows(9)
            .position(|bytes| bytes == [7; 9])
            .unwrap();
        altered[at] = 8;
        assert!(verify(&altered, &certificate).is_err());
    }
}

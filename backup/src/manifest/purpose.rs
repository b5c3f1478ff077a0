//! What a restore point is for: a machine as it was, or an image to reset machines to.
//!
//! Invariant: an [`ImageName`] can stand wherever the id of a restore point can, on a command line, in
//! a path of the API and before the colon of `RESTORE-POINT:PATH`. That it is unique is the server's
//! to say, not this module's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a restore point is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestorePointKind {
    /// A machine as it was, to be brought back on that machine.
    #[default]
    Backup,
    /// An image to reset machines to, tied to none.
    Factory,
}

impl RestorePointKind {
    /// The word that lists and the API use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Factory => "factory",
        }
    }
}

/// Text that can not name a factory image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` cannot name an image (expected a letter and then at most 63 letters, digits, dots, dashes or underscores; not `latest`)"
)]
pub struct ImageNameError {
    /// The text, shortened to 80 characters.
    pub found: String,
}

/// What people call a factory image. Names that differ in case alone are the same name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Its text, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this text means the same name.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        self.0.eq_ignore_ascii_case(text)
    }
}

impl PartialEq for ImageName {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for ImageName {}

impl TryFrom<String> for ImageName {
    type Error = ImageNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = (1..=64).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            && !text.eq_ignore_ascii_case("latest");
        if fits {
            Ok(Self(text))
        } else {
            Err(ImageNameError {
                found: text.chars().take(80).collect(),
            })
        }
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What people say of a factory image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageLabel {
    /// What it is called; one without a name goes by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ImageName>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What a capture is made for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purpose {
    /// Of which kind the restore point will be.
    pub kind: RestorePointKind,
    /// What it is called, if it is a factory image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageLabel>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_can_stand_where_an_id_can() {
        for text in ["w", "Win11-lab_2026.1", &"a".repeat(64)] {
            assert_eq!(ImageName::try_from(text.to_owned()).unwrap().as_str(), text);
        }
        for text in [
            "",
            "20260101",
            "-x",
            "..",
            "a:b",
            "a/b",
            "a b",
            "Latest",
            "é",
            &"a".repeat(65),
        ] {
            assert!(ImageName::try_from(text.to_owned()).is_err(), "{text}");
            let json = format!("{{\"name\":\"{text}\"}}");
            assert!(serde_json::from_str::<ImageLabel>(&json).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_differ_in_case_alone_are_the_same() {
        let name = |text: &str| ImageName::try_from(text.to_owned()).unwrap();
        assert_eq!(name("Lab"), name("lAB"));
        assert!(name("Lab").is("lab") && !name("Lab").is("lab2"));
    }
}

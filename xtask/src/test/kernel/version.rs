//! Versions of kernels, as people name them and as Debian names its packages.

use std::{fmt, str::FromStr};

/// `6.1`: what a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl FromStr for Version {
    type Err = ();

    /// Exactly two numbers with a dot between; anything else is some other word.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(drop),
            false => Err(()),
        };
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Tells whether the kernel is older than `major.minor`.
    pub fn is_before(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) < (major, minor)
    }

    /// A pattern for `apt-cache search --names-only`: packages that may hold this kernel.
    pub fn pattern(self) -> String {
        format!(r"^linux-(image|binary)-{}\.{}\..*-cloud-amd64$", self.major, self.minor)
    }

    /// The newest package of this kernel among `names`, and at equal versions the one that holds the
    /// image: since 7.0 Debian's `linux-image` is empty beside a `linux-binary`.
    pub fn newest<'n>(self, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
        names
            .into_iter()
            .filter_map(|name| {
                let (binary, rest) = match name.strip_prefix("linux-binary-") {
                    Some(rest) => (true, rest),
                    None => (false, name.strip_prefix("linux-image-")?),
                };
                let numbers = numbers(rest.strip_suffix("-cloud-amd64")?);
                (numbers.len() > 2 && numbers[..2] == [self.major, self.minor])
                    .then_some((numbers, binary, name))
            })
            .max()
            .map(|(_, _, name)| name)
    }
}

/// All numbers in a version, in their order: 6, 1, 0, 56 of `6.1.0-56`.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_two_numbers_and_nothing_else() {
        assert_eq!("6.1".parse(), Ok(Version { major: 6, minor: 1 }));
        assert_eq!("5.10".parse::<Version>().unwrap().to_string(), "5.10");
        for other in ["6", "6.", ".1", "6.1.0", "wire_tcp", "v6.1", "+6.1", "a.b", ""] {
            assert!(other.parse::<Version>().is_err(), "{other}");
        }
    }

    #[test]
    fn versions_are_ordered_by_numbers() {
        let version: Version = "5.10".parse().unwrap();
        assert!(version.is_before(6, 1) && version.is_before(5, 11));
        assert!(!version.is_before(5, 10) && !version.is_before(5, 9));
    }

    #[test]
    fn the_newest_package_is_found_by_its_numbers_not_its_letters() {
        let newest = |version: &str, names: &[&'static str]| {
            version.parse::<Version>().unwrap().newest(names.iter().copied())
        };
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-60-rt-amd64",
        ];
        assert_eq!(newest("6.1", &names), Some(names[1]));
        assert_eq!(newest("6.12", &names), Some(names[2]));
        assert_eq!(newest("5.10", &names), None);
        let names = ["linux-image-7.3.4+deb13-cloud-amd64", "linux-binary-7.3.4+deb13-cloud-amd64"];
        assert_eq!(newest("7.3", &names), Some(names[1]));
    }
}

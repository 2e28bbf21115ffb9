use std::fmt;
use std::str::FromStr;

/// One of several equal parts of a dataset's slices, fixed by the slices' content.
///
/// ```
/// use sam_lst::training::Shard;
///
/// let shard: Shard = "3/8".parse()?;
/// assert_eq!((shard.index(), shard.count()), (3, 8));
/// # Ok::<(), sam_lst::training::ShardError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Shard `index`, from 0, of `count`.
    ///
    /// # Errors
    ///
    /// [`ShardError`] if `index` is not below `count`.
    pub fn new(index: usize, count: usize) -> Result<Self, ShardError> {
        if index >= count {
            return Err(ShardError { found: format!("{index}/{count}") });
        }
        Ok(Self { index, count })
    }

    /// Its index, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// The number of shards.
    pub fn count(self) -> usize {
        self.count
    }
}

/// Text that does not name a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid shard `{found}`; expected INDEX/COUNT with INDEX from 0 to COUNT - 1, as in `0/8`"
)]
pub struct ShardError {
    /// The text.
    pub found: String,
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(index, count)| {
            Self::new(index.trim().parse().ok()?, count.trim().parse().ok()?).ok()
        });
        parsed.ok_or_else(|| ShardError { found: text.to_owned() })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_parsed_and_checked() {
        assert_eq!("0/1".parse(), Shard::new(0, 1));
        assert_eq!("7/8".parse::<Shard>().map(|shard| shard.to_string()), Ok("7/8".to_owned()));
        for invalid in ["8/8", "1", "a/2", "0/0", "-1/4", ""] {
            assert!(invalid.parse::<Shard>().is_err(), "{invalid}");
        }
    }
}

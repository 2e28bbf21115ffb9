use sam_lst_datasets::View;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which of the 44 augmentation views have their embeddings cached. Embeddings of other views are
/// computed each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CachedViews(usize);

impl CachedViews {
    /// All 44 views.
    pub const ALL: Self = Self(View::COUNT);
    /// The identity and the four reflections: three quarters of all draws.
    pub const DISCRETE: Self = Self(5);
    /// No view.
    pub const NONE: Self = Self(0);
    /// The identity alone.
    pub const IDENTITY: Self = Self(1);

    /// Number of views.
    pub fn count(self) -> usize {
        self.0
    }

    /// Whether embeddings of a view are cached.
    pub fn contains(self, view: View) -> bool {
        View::all().take(self.0).any(|cached| cached == view)
    }
}

/// Text that does not name a set of views.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid views `{found}`; expected `all`, `discrete`, `identity` or a number from 0 to 44")]
pub struct CachedViewsError {
    /// The text.
    pub found: String,
}

impl FromStr for CachedViews {
    type Err = CachedViewsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::ALL),
            "discrete" => Ok(Self::DISCRETE),
            "identity" => Ok(Self::IDENTITY),
            _ => match text.parse() {
                Ok(count @ 0..=View::COUNT) => Ok(Self(count)),
                _ => Err(CachedViewsError { found: text.to_owned() }),
            },
        }
    }
}

impl fmt::Display for CachedViews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self::DISCRETE => f.write_str("discrete"),
            Self::IDENTITY => f.write_str("identity"),
            Self(count) => write!(f, "{count}"),
        }
    }
}

impl TryFrom<String> for CachedViews {
    type Error = CachedViewsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CachedViews> for String {
    fn from(views: CachedViews) -> Self {
        views.to_string()
    }
}

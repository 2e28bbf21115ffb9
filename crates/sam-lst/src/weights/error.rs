use crate::ConfigError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why weights could not be loaded or saved. Every message names the file, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// There is no such file.
    #[error("{path}: no such file{hint}", path = path.display(), hint = Hint(hint))]
    NotFound {
        /// The file.
        path: PathBuf,
        /// Where the official one is published, if its name is official.
        hint: Option<String>,
    },
    /// The operating system could not read the file.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file could not be written. What was at its place before is still there.
    #[error("{path}: cannot be written: {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file is neither a PyTorch checkpoint nor safetensors.
    #[error("{path}: not a checkpoint: expected a PyTorch .pth or safetensors file, found {found}", path = path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What its contents look like.
        found: String,
    },
    /// The file ends too early, or its contents contradict themselves.
    #[error("{path}: truncated or damaged ({reason}); download or copy it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file bears an official name, but is not that file.
    #[error(
        "{path}: a broken download: its SHA-256 is {found}, but that of {name} begins with {expected}; \
         download it again from {url}",
        path = path.display()
    )]
    BrokenDownload {
        /// The file.
        path: PathBuf,
        /// The official name.
        name: &'static str,
        /// The digits in the name.
        expected: &'static str,
        /// The file's SHA-256 in hexadecimal.
        found: String,
        /// Where the official file is published.
        url: String,
    },
    /// The file has other weights than when it was first read.
    #[error("{path}: it was changed while it was in use; start again", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file holds other tensors than were asked for.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// Tensors that the model needs are not in the file.
    #[error("{path}: {count} missing: {names}", path = path.display(), count = Count(names), names = List(names))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensors' names in the file.
        names: Vec<String>,
    },
    /// The file holds tensors that the model has no use for.
    #[error("{path}: {count} without a place in the model: {names}", path = path.display(), count = Count(names), names = List(names))]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensors' names in the file.
        names: Vec<String>,
    },
    /// A tensor has another shape than the model's.
    #[error("{path}: tensor {name} has shape {found:?}, expected {expected:?}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// A tensor's values are not floating-point numbers.
    #[error("{path}: tensor {name} holds {found}, expected floating-point numbers", path = path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its type.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{path}: tensor {name} holds {value} at index {index}; its training diverged or the file is damaged",
        path = path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Index of the first such value, in the tensor's row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The ladder was trained over other frozen weights than the model's.
    #[error(
        "{path}: this ladder was trained over another {part}: its weights' SHA-256 is {expected}, this one's {found}; \
         load SAM's checkpoint that it was trained with",
        path = path.display()
    )]
    WrongFoundation {
        /// The ladder checkpoint.
        path: PathBuf,
        /// Which frozen part differs.
        part: &'static str,
        /// The hash that the checkpoint carries.
        expected: String,
        /// The model's hash.
        found: String,
    },
    /// The ladder's configuration is not the model's.
    #[error("{path}: this ladder has another configuration: {field} is {found}, the model's is {expected}", path = path.display())]
    WrongConfig {
        /// The ladder checkpoint.
        path: PathBuf,
        /// The first value that differs.
        field: String,
        /// The model's.
        expected: String,
        /// The checkpoint's.
        found: String,
    },
    /// The configuration itself cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

struct Count<'a>(&'a [String]);

impl fmt::Display for Count<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 tensor"),
            count => write!(f, "{count} tensors"),
        }
    }
}

/// Names a few and counts the rest: a wrong file can have hundreds.
struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "{}", shown.join(", "))?;
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            rest => write!(f, " and {rest} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names = |count: usize| (0..count).map(|i| format!("t{i}")).collect();
        let message = |count| {
            WeightsError::Missing {
                path: "a.pth".into(),
                names: names(count),
            }
            .to_string()
        };
        assert_eq!(message(1), "a.pth: 1 tensor missing: t0");
        assert_eq!(
            message(7),
            "a.pth: 7 tensors missing: t0, t1, t2, t3, t4 and 2 more"
        );
    }
}

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why weights could not be loaded or saved. Every message names the file and the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file does not exist.
    #[error("cannot load {path}: no such file{hint}", path = path.display(), hint = Hint(hint))]
    NotFound {
        /// The file.
        path: PathBuf,
        /// Where to download the file, if its name is that of an official file.
        hint: Option<String>,
    },
    /// The file exists, but the operating system cannot read it.
    #[error("cannot load {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file cannot be written. An existing file of that name is unchanged.
    #[error("cannot write {path}: {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file is neither a PyTorch checkpoint nor safetensors.
    #[error(
        "cannot load {path}: expected a PyTorch .pth or safetensors file, found {found}",
        path = path.display()
    )]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What the file appears to be.
        found: String,
    },
    /// The file is incomplete or inconsistent.
    #[error(
        "cannot load {path}: the file is truncated or damaged ({reason}); download or copy it \
         again",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The inconsistency.
        reason: String,
    },
    /// The file has the name of an official file, but not its SHA-256.
    #[error(
        "cannot load {path}: its SHA-256 is {found}, but that of the official {name} begins with \
         {expected}; download it again from {url}",
        path = path.display()
    )]
    BrokenDownload {
        /// The file.
        path: PathBuf,
        /// The official name.
        name: &'static str,
        /// The first digits of the official SHA-256, which are part of the name.
        expected: &'static str,
        /// The file's SHA-256 in hexadecimal.
        found: String,
        /// Where the official file is published.
        url: String,
    },
    /// The file's weights are not those that were first loaded from it.
    #[error(
        "cannot load {path}: its weights have changed since they were first loaded; restore the \
         file, or restart with the new weights",
        path = path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file contains another kind of model than expected.
    #[error("cannot load {path}: expected {expected}, found {found}", path = path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// The expected kind.
        expected: String,
        /// The kind that the file contains.
        found: String,
    },
    /// The file contains several models.
    #[error(
        "cannot load {path}: it contains several models, with the prefixes {}; save one of them to \
         a file of its own",
        prefixes.join(", "), path = path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The prefixes of the models' tensors.
        prefixes: Vec<String>,
    },
    /// The file contains an object that is not a dictionary of tensors, or tensors of an
    /// unsupported type.
    #[error(
        "cannot load {path}: it contains {found}; {remedy}",
        path = path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it contains.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The file lacks tensors of the model.
    #[error(
        "cannot load {path}: {count} missing: {names}",
        path = path.display(), count = Count(names), names = List(names)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensors' names in the file.
        names: Vec<String>,
    },
    /// The file contains tensors that are not in the model.
    #[error(
        "cannot load {path}: {count} not in the model: {names}",
        path = path.display(), count = Count(names), names = List(names)
    )]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensors' names in the file.
        names: Vec<String>,
    },
    /// A tensor's shape differs from that of the model.
    #[error(
        "cannot load {path}: tensor {name} has shape {found:?}, expected {expected:?}",
        path = path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape in the model.
        expected: Vec<usize>,
    },
    /// A tensor's values are not floating-point numbers.
    #[error(
        "cannot load {path}: tensor {name} has element type {found}, expected a floating-point \
         type",
        path = path.display()
    )]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its element type.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "cannot load or write {path}: tensor {name} holds {value} at index {index}; training \
         diverged or the file is damaged, so use an earlier checkpoint or another copy",
        path = path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Row-major index of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
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

/// Displays the first names and counts the others: a wrong file can have hundreds.
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
    fn long_lists_of_names_are_truncated() {
        let names = |count: usize| (0..count).map(|i| format!("t{i}")).collect();
        let message =
            |count| WeightsError::Missing { path: "a.pth".into(), names: names(count) }.to_string();
        assert_eq!(message(1), "cannot load a.pth: 1 tensor missing: t0");
        assert_eq!(
            message(7),
            "cannot load a.pth: 7 tensors missing: t0, t1, t2, t3, t4 and 2 more"
        );
    }
}

//! Results on standard output, and checks of output files before any work.

use crate::WrongUsage;
use crate::staging::Staging;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Writes a result to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // As with `sam-lst devices | head -1`, the reader has what it wants.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes a result to standard output as JSON.
pub fn print_json(result: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(result).context("cannot write the result as JSON")?;
    print(&format!("{text}\n"))
}

/// Checks that an input exists.
pub fn check_input(input: &Path) -> Result<()> {
    std::fs::metadata(input).with_context(|| format!("cannot read {}", input.display()))?;
    Ok(())
}

/// Checks that a checkpoint exists.
pub fn check_checkpoint(checkpoint: &Path) -> Result<()> {
    if !checkpoint.exists() {
        // Says where the official file of this name is published.
        sam_lst::weights::StateDict::open(checkpoint)?;
    }
    Ok(())
}

/// Checks the ending of an output's name.
pub fn check_ending(output: &Path, endings: &[&str]) -> Result<()> {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    if !endings.iter().any(|ending| name.len() > ending.len() && name.ends_with(ending)) {
        bail!(WrongUsage(format!(
            "cannot write {}: its format is not supported; expected a name that ends in {}",
            output.display(),
            endings.join(" or ")
        )));
    }
    Ok(())
}

/// Checks that an output file is none of the inputs, and does not exist unless `force`.
pub fn check_file(output: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    check_not_input(output, inputs)?;
    if output.is_dir() {
        bail!("cannot write {}: it is a folder", output.display());
    }
    if !force && output.symlink_metadata().is_ok() {
        bail!("cannot write {}: it exists; --force overwrites it", output.display());
    }
    Ok(())
}

/// Checks that an output folder is none of the inputs, and is empty unless `force`.
pub fn check_folder(output: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    check_not_input(output, inputs)?;
    if !output.exists() {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(output)
        .with_context(|| format!("cannot write to folder {}", output.display()))?;
    if !force && entries.next().is_some() {
        bail!(
            "cannot write to folder {}: it is not empty; --force overwrites files in it",
            output.display()
        );
    }
    Ok(())
}

/// Checks that an output is none of the inputs.
pub fn check_not_input(output: &Path, inputs: &[&Path]) -> Result<()> {
    let resolved = resolve(output);
    for input in inputs {
        if resolve(input) == resolved {
            bail!(
                "cannot write {}: it is also {}; choose another output",
                output.display(),
                input.display()
            );
        }
    }
    Ok(())
}

/// Checks that a folder can be created, or exists, and takes files.
pub fn check_writable(folder: &Path) -> Result<()> {
    Staging::new(folder).map(drop)
}

/// The folder of a file.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The absolute path without symbolic links, also of a file that does not exist yet.
pub fn resolve(path: &Path) -> PathBuf {
    if let Ok(resolved) = path.canonicalize() {
        return resolved;
    }
    match (path.file_name(), path.parent()) {
        (Some(name), _) => resolve(folder_of(path)).join(name),
        // The path ends in `..`. A folder that does not exist cannot be a symbolic link, so its
        // parent is the folder before it in the path.
        (None, Some(folder)) => folder_of(&resolve(folder)).to_owned(),
        (None, None) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<()>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn an_input_is_recognised_by_any_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let input = folder.path().join("ct.nii");
        std::fs::write(&input, "").expect("writes");
        std::fs::create_dir(folder.path().join("other")).expect("a folder");
        let mut aliases = vec![
            input.clone(),
            folder.path().join("other/../ct.nii"),
            folder.path().join("not/there/../../ct.nii"),
        ];
        #[cfg(unix)]
        {
            let link = folder.path().join("link.nii");
            std::os::unix::fs::symlink(&input, &link).expect("a link");
            aliases.push(link);
        }
        for output in aliases {
            let found = message(check_file(&output, &[&input], true));
            assert!(found.contains("it is also"), "{found}");
        }
        check_file(&folder.path().join("organs.nii"), &[&input], false).expect("another file");
    }

    #[test]
    fn existing_outputs_need_force() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("organs.nii");
        check_folder(folder.path(), &[], false).expect("empty");
        std::fs::write(&file, "").expect("writes");
        assert!(message(check_file(&file, &[], false)).contains("--force"));
        assert!(message(check_folder(folder.path(), &[], false)).contains("--force"));
        check_file(&file, &[], true).expect("forced");
        check_folder(folder.path(), &[], true).expect("forced");
        assert!(message(check_file(folder.path(), &[], true)).contains("it is a folder"));
        assert!(check_folder(&file, &[], true).is_err());
    }

    #[test]
    fn endings_are_checked() {
        let endings = [".nii", ".nii.gz"];
        for name in ["a.nii", "a.nii.gz", "a.b/c.nii"] {
            check_ending(Path::new(name), &endings).expect(name);
        }
        for name in ["a.nrrd", "a", ".nii", "..", ""] {
            let found = message(check_ending(Path::new(name), &endings));
            assert!(found.contains(".nii or .nii.gz"), "{found}");
        }
    }
}

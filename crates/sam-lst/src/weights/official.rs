use super::WeightsError;
use sam_lst_datasets::files_sha256;
use std::path::Path;

/// A published file, whose name contains the first digits of its SHA-256.
pub(super) struct OfficialFile {
    pub name: &'static str,
    pub sha256_prefix: &'static str,
    base_url: &'static str,
}

const SAM: &str = "https://dl.fbaipublicfiles.com/segment_anything/";
const TORCHVISION: &str = "https://download.pytorch.org/models/";

const OFFICIAL: [OfficialFile; 6] = [
    OfficialFile { name: "sam_vit_b_01ec64.pth", sha256_prefix: "01ec64", base_url: SAM },
    OfficialFile { name: "sam_vit_l_0b3195.pth", sha256_prefix: "0b3195", base_url: SAM },
    OfficialFile { name: "sam_vit_h_4b8939.pth", sha256_prefix: "4b8939", base_url: SAM },
    OfficialFile {
        name: "resnet18-f37072fd.pth",
        sha256_prefix: "f37072fd",
        base_url: TORCHVISION,
    },
    OfficialFile {
        name: "resnet34-b627a593.pth",
        sha256_prefix: "b627a593",
        base_url: TORCHVISION,
    },
    OfficialFile {
        name: "resnet50-0676ba61.pth",
        sha256_prefix: "0676ba61",
        base_url: TORCHVISION,
    },
];

impl OfficialFile {
    /// Finds the official file with the name of `path`.
    pub(super) fn named(path: &Path) -> Option<&'static Self> {
        let name = path.file_name()?.to_str()?;
        OFFICIAL.iter().find(|file| file.name == name)
    }

    pub(super) fn url(&self) -> String {
        format!("{}{}", self.base_url, self.name)
    }

    /// Checks that the SHA-256 of the file at `path` begins with the digits in its name.
    pub(super) fn verify(&'static self, path: &Path) -> Result<(), WeightsError> {
        let found = files_sha256([path])
            .map_err(|(_, source)| WeightsError::Read { path: path.into(), source })?;
        if found.starts_with(self.sha256_prefix) {
            return Ok(());
        }
        Err(WeightsError::BrokenDownload {
            path: path.into(),
            name: self.name,
            expected: self.sha256_prefix,
            found,
            url: self.url(),
        })
    }
}

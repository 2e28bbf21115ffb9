//! Images and labels in any format: NIfTI, NRRD, MetaImage, pictures, and folders of DICOM series.

use crate::dicom::{is_dicom, list_files};
use crate::nifti_file::{
    read_nifti_channels, read_nifti_image_filled, read_nifti_label_volume, read_nifti_labels,
    read_nifti_mask,
};
use crate::nifti_header;
use crate::picture::{
    MaskLevels, check_picture, picture_format, read_mask_levels, read_picture, read_picture_labels,
    read_picture_mask, read_picture_numbers, write_picture_labels, write_picture_map,
};
use crate::raw::{Intensities, LabelNumbers, Scaling};
use crate::text_header::{TextFormat, TextHeaderReader};
use crate::{
    Color, DatasetDescription, Geometry, Image, LabelMap, Orientation, ReadError, Volume,
    WriteError, read_dicom_geometry, read_dicom_image, read_nifti_geometry, write_nifti,
    write_nifti_labels,
};
use image::ImageFormat;
use ndarray::{ArrayView3, Axis, stack};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a file or folder contains, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A NIfTI file, or anything that is not recognised.
    Nifti,
    /// A folder of a DICOM series.
    DicomSeries,
    /// An NRRD or MetaImage file.
    Text(TextFormat),
    /// A picture without a geometry.
    Picture(ImageFormat),
}

impl Format {
    fn of(path: &Path) -> Result<Self, ReadError> {
        if path.is_dir() {
            return Ok(Self::DicomSeries);
        }
        let mut start = Vec::new();
        let file = File::open(path).map_err(ReadError::io(path))?;
        file.take(16).read_to_end(&mut start).map_err(ReadError::io(path))?;
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_meta_image = matches!(ending.as_str(), "mha" | "mhd")
            || [&b"ObjectType"[..], b"NDims"].iter().any(|key| start.starts_with(key));
        // The preamble of a DICOM file may be the header of a TIFF file.
        Ok(match picture_format(&start) {
            Some(format) if !is_dicom(path) => Self::Picture(format),
            _ if start.starts_with(b"NRRD000") => Self::Text(TextFormat::Nrrd),
            _ if is_meta_image => Self::Text(TextFormat::MetaImage),
            _ => Self::Nifti,
        })
    }
}

/// Reads the intensities of an image: a NIfTI file
/// ([`read_nifti_image`](crate::read_nifti_image)), an NRRD file (`.nrrd`, `.nhdr`), a MetaImage file
/// (`.mha`, `.mhd`), the DICOM series in a folder ([`read_dicom_image`]), or a picture (PNG, JPEG,
/// TIFF, BMP, GIF).
///
/// A picture is one slice without a geometry, with the numbers of its file (0 to 255, or to 65,535),
/// in one channel or, if it has colours, in three. The pages of a TIFF file are slices. Transparency
/// is ignored.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has voxels that are not
/// finite.
pub fn read_image(path: impl AsRef<Path>, orientation: Orientation) -> Result<Image, ReadError> {
    read_image_filled(path.as_ref(), orientation, None)
}

/// As [`read_image`]; voxels of a NIfTI file that are NaN become `fill`, if it is given.
pub(crate) fn read_image_filled(
    path: &Path,
    orientation: Orientation,
    fill: Option<f32>,
) -> Result<Image, ReadError> {
    match Format::of(path)? {
        Format::DicomSeries => read_dicom_image(path, orientation).map(Image::from),
        Format::Nifti => read_nifti_image_filled(path, orientation, fill).map(Image::from),
        Format::Text(format) => {
            let intensities = Intensities { fill, ..Intensities::STORED };
            let reader = TextHeaderReader::open(path, format)?;
            reader.read(orientation, &intensities).map(Image::from)
        }
        Format::Picture(format) => read_picture(path, format),
    }
}

/// Reads the channels of an image, each from a file of its own, or those of `of_file` from the only one.
/// Of two channels, the third is their mean.
pub(crate) fn read_channels<P: AsRef<Path>>(
    paths: &[P],
    of_file: &[usize],
    orientation: Orientation,
    fill: Option<f32>,
) -> Result<Image, ReadError> {
    let [first, others @ ..] = paths else { unreachable!("a case has an image") };
    let first_path = first.as_ref();
    if !of_file.is_empty() {
        return match Format::of(first_path)? {
            Format::Nifti => read_nifti_channels(first_path, of_file, orientation, fill),
            _ => Err(ReadError::NotNifti { file: first_path.to_owned() }),
        };
    }
    let first = read_image_filled(first_path, orientation, fill)?;
    if others.is_empty() {
        return Ok(first);
    }
    let mut channels = vec![first];
    for path in others {
        let path = path.as_ref();
        let channel = read_image_filled(path, orientation, fill)?;
        let differs = |found: String| ReadError::Channel {
            file: path.to_owned(),
            first: first_path.to_owned(),
            found,
        };
        if let Some(colored) = [&channels[0], &channel].iter().find(|image| image.channels() > 1) {
            return Err(differs(format!("{} channels in one file", colored.channels())));
        }
        let [expected, found] = [&channels[0], &channel].map(Image::shape);
        if found != expected {
            return Err(differs(format!("the shapes {expected:?} and {found:?}")));
        }
        if let (Some(expected), Some(found)) = (channels[0].geometry(), channel.geometry())
            && !expected.is_same_grid(found)
        {
            let distance_mm = expected.max_corner_distance_mm(found);
            return Err(differs(format!("corners that are up to {distance_mm:.3} mm apart")));
        }
        channels.push(channel);
    }
    let voxels = channels.iter().map(|image| image.channel(0)).collect();
    Ok(stacked(voxels, channels[0].geometry().cloned()))
}

/// The image of one to three channels of one shape. Of two channels, the third is their mean.
pub(crate) fn stacked(channels: Vec<ArrayView3<'_, f32>>, geometry: Option<Geometry>) -> Image {
    let mean;
    let mut channels = channels;
    if let [first, second] = channels[..] {
        mean = (&first + &second) / 2.0;
        channels.push(mean.view());
    }
    Image::new(stack(Axis(0), &channels).expect("channels of one shape"), geometry)
}

/// Reads the geometry of an image without its voxels, `None` if it has none, as a picture.
///
/// # Errors
///
/// [`ReadError`], as [`read_image`].
pub fn read_geometry(
    path: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Option<Geometry>, ReadError> {
    let path = path.as_ref();
    match Format::of(path)? {
        Format::DicomSeries => read_dicom_geometry(path, orientation).map(Some),
        Format::Nifti => read_nifti_geometry(path, orientation).map(Some),
        Format::Text(format) => {
            TextHeaderReader::open(path, format)?.geometry(orientation).map(Some)
        }
        Format::Picture(format) => check_picture(path, format).map(|()| None),
    }
}

/// Reads the labels of a file as classes: a NIfTI file ([`read_nifti_labels`]), an NRRD or MetaImage
/// file, or a mask (PNG, JPEG, TIFF, BMP, GIF).
///
/// The pixels of a mask have label numbers, as grey values or as indices of a palette, or the colours
/// of `colors`. Soft edges and the noise of JPEG are taken as the closest label, with a warning.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has a label that is not in
/// `labels` or a colour that is not in `colors`.
pub fn read_labels(
    file: impl AsRef<Path>,
    orientation: Orientation,
    labels: &LabelMap,
    colors: &BTreeMap<Color, u16>,
) -> Result<Volume<u8>, ReadError> {
    let file = file.as_ref();
    match Format::of(file)? {
        Format::Picture(format) => read_picture_labels(file, format, labels, colors),
        Format::Text(format) => {
            let conversion = (LabelNumbers::new(Scaling::NONE), labels);
            let volume = TextHeaderReader::open(file, format)?.read(orientation, &conversion)?;
            conversion.0.report(file);
            Ok(volume)
        }
        Format::Nifti | Format::DicomSeries => read_nifti_labels(file, orientation, labels),
    }
}

/// What a mask was drawn with; `None` if the file is not a picture.
pub(crate) fn mask_levels(file: &Path) -> Result<Option<MaskLevels>, ReadError> {
    match Format::of(file)? {
        Format::Picture(format) => read_mask_levels(file, format).map(Some),
        Format::Nifti | Format::Text(_) | Format::DicomSeries => Ok(None),
    }
}

/// Reads the labels of a file as the file's own numbers.
pub(crate) fn read_label_volume(
    file: &Path,
    orientation: Orientation,
    colors: &BTreeMap<Color, u16>,
) -> Result<Volume<u16>, ReadError> {
    match Format::of(file)? {
        Format::Picture(format) => read_picture_numbers(file, format, colors),
        Format::Text(format) => {
            let numbers = LabelNumbers::new(Scaling::NONE);
            let volume = TextHeaderReader::open(file, format)?.read(orientation, &numbers)?;
            numbers.report(file);
            Ok(volume)
        }
        Format::Nifti | Format::DicomSeries => read_nifti_label_volume(file, orientation),
    }
}

/// Reads the mask of one organ: 1 where the file is not 0 or, of a picture with soft edges, where it is
/// closer to the organ's value.
pub(crate) fn read_mask(file: &Path, orientation: Orientation) -> Result<Volume<u8>, ReadError> {
    match Format::of(file)? {
        Format::Picture(format) => read_picture_mask(file, format),
        Format::Text(_) => {
            let numbers = read_label_volume(file, orientation, &BTreeMap::new())?;
            Ok(numbers.with_voxels(numbers.voxels().mapv(|number| u8::from(number != 0))))
        }
        Format::Nifti | Format::DicomSeries => read_nifti_mask(file, orientation),
    }
}

/// The files that an image or its labels consist of: those of a folder in the order of their names, the
/// two of a pair of header and voxels.
pub(crate) fn files_of(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    Ok(match Format::of(path)? {
        Format::DicomSeries => {
            let mut files = Vec::new();
            list_files(path, 0, &mut files)?;
            files
        }
        Format::Nifti => {
            let [header, voxels] = nifti_header::files(path);
            if header == voxels { vec![header] } else { vec![header, voxels] }
        }
        Format::Text(format) => TextHeaderReader::open(path, format)?.files(),
        Format::Picture(_) => vec![path.to_owned()],
    })
}

/// Writes classes with the labels of a description, in the format of the file's name: NIfTI (`.nii`,
/// `.nii.gz`) for volumes with a geometry, PNG for one slice without, TIFF with a page for each slice.
/// The pixels of pictures have label numbers or, with colours in the description, these.
///
/// # Errors
///
/// [`WriteError`] if the format does not suit the volume, or the file cannot be written; an existing
/// file is then unchanged.
///
/// # Panics
///
/// If the description does not have a class of the volume.
pub fn write_labels(
    file: impl AsRef<Path>,
    classes: &Volume<u8>,
    description: &DatasetDescription,
) -> Result<(), WriteError> {
    let file = file.as_ref();
    let map = description.label_map();
    match check_kind(file, classes)? {
        Kind::Picture => write_picture_labels(file, classes, &map, description.label_colors()),
        Kind::Volume => write_nifti_labels(file, classes, &map),
    }
}

/// Writes a map of values from 0 to 1: of a volume with a geometry as NIfTI in 32-bit floats, of a
/// picture as grey pixels from 0 to 255, PNG or TIFF.
///
/// # Errors
///
/// [`WriteError`] if the name's extension does not fit the volume, or the file cannot be written; an
/// existing file is then unchanged.
pub fn write_map(file: impl AsRef<Path>, map: &Volume<f32>) -> Result<(), WriteError> {
    let file = file.as_ref();
    match check_kind(file, map)? {
        Kind::Picture => write_picture_map(file, map),
        Kind::Volume => write_nifti(file, map),
    }
}

/// What a file holds.
enum Kind {
    Picture,
    Volume,
}

/// Checks that a volume can be written to a file of this name.
fn check_kind<T>(file: &Path, volume: &Volume<T>) -> Result<Kind, WriteError> {
    let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_picture = matches!(ending.as_str(), "png" | "tif" | "tiff");
    let unsupported =
        |reason: &str| WriteError::Unsupported { file: file.to_owned(), reason: reason.to_owned() };
    match (is_picture, volume.geometry()) {
        (true, None) => Ok(Kind::Picture),
        (true, Some(_)) => Err(unsupported(
            "a picture cannot hold the position of its voxels in the patient; use a name in .nii.gz",
        )),
        (false, None) => Err(unsupported(
            "the image is a picture without a position in the patient; use a name in .png or .tif",
        )),
        (false, Some(_)) => Ok(Kind::Volume),
    }
}

/// Reads which label numbers a file contains, a mask in colours by the numbers of `colors`.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has a voxel that is not a
/// whole number from 0 to 65,535 or a colour that is not in `colors`.
pub fn read_label_numbers(
    file: impl AsRef<Path>,
    colors: &BTreeMap<Color, u16>,
) -> Result<BTreeSet<u16>, ReadError> {
    let volume = read_label_volume(file.as_ref(), Orientation::Stored, colors)?;
    let mut present = vec![false; 1 << 16];
    volume.voxels().iter().for_each(|&label| present[usize::from(label)] = true);
    Ok((0..=u16::MAX).filter(|&label| present[usize::from(label)]).collect())
}

//! Reads NRRD (`.nrrd`, `.nhdr`) and MetaImage (`.mha`, `.mhd`) files: a header of text lines, and
//! voxels in the same file or in another.

use crate::raw::{ArrayHeader, FromNumber, MAX_DEFLATE_RATIO};
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::{Geometry, Orientation, ReadError, Volume};
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFormat {
    /// Source: teem.sourceforge.net/nrrd/format.html.
    Nrrd,
    /// Source: itk.org/Wiki/ITK/MetaIO/Documentation.
    MetaImage,
}

/// An open file whose header has been read and checked.
pub(crate) struct TextHeaderReader<'a> {
    file: &'a Path,
    array: ArrayHeader,
    /// Maps (column, row, slice, 1) to millimetres: x to the right, y to the front, z to the head.
    affine_mm: [[f64; 4]; 3],
    /// The file with the voxels.
    voxel_file: PathBuf,
    /// Positioned at the first voxel.
    stream: Box<dyn Read>,
}

/// No line of a header is longer, and no header has more.
const MAX_LINE_BYTES: u64 = 1 << 16;
const MAX_LINES: usize = 1 << 12;

/// What a header says, whichever its format.
struct Header {
    voxel_type: VoxelType,
    order: ByteOrder,
    dim: [usize; 3],
    affine_mm: [[f64; 4]; 3],
    compression: Compression,
    /// `None` if the voxels follow the header.
    voxel_file: Option<String>,
    skip: Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zlib,
}

/// What precedes the voxels in their file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Skip {
    Bytes(u64),
    /// The voxels are the last bytes of the file.
    ToEnd,
}

impl<'a> TextHeaderReader<'a> {
    pub fn open(file: &'a Path, format: TextFormat) -> Result<Self, ReadError> {
        let io = ReadError::io(file);
        let mut opened = BufReader::new(File::open(file).map_err(io)?);
        let invalid = |found: String| format_error(file, format, found);
        let fields = Fields::read(&mut opened, format).map_err(|error| match error {
            HeaderError::Io(source) => io(source),
            HeaderError::Invalid(found) => invalid(found),
        })?;
        let header = match format {
            TextFormat::Nrrd => nrrd(&fields),
            TextFormat::MetaImage => meta_image(&fields),
        };
        let header = header.map_err(invalid)?;
        let array =
            ArrayHeader { voxel_type: header.voxel_type, order: header.order, dim: header.dim };
        let header_end = opened.stream_position().map_err(io)?;
        let voxel_file = header.voxel_file.map_or_else(
            || file.to_owned(),
            |name| file.parent().unwrap_or(Path::new("")).join(name),
        );
        let io = ReadError::io(&voxel_file);
        let (mut stream, start) = if voxel_file == file {
            (opened, header_end)
        } else {
            (BufReader::new(File::open(&voxel_file).map_err(io)?), 0)
        };
        let file_bytes = std::fs::metadata(&voxel_file).map_err(io)?.len();
        let start = match header.skip {
            Skip::Bytes(bytes) => start.saturating_add(bytes),
            Skip::ToEnd => file_bytes.saturating_sub(array.bytes()),
        };
        let ratio = if header.compression == Compression::None { 1 } else { MAX_DEFLATE_RATIO };
        array.check(file, file_bytes.saturating_sub(start).saturating_mul(ratio))?;
        stream.seek(SeekFrom::Start(start)).map_err(io)?;
        let stream: Box<dyn Read> = match header.compression {
            Compression::None => Box::new(stream),
            Compression::Gzip => Box::new(MultiGzDecoder::new(stream)),
            Compression::Zlib => Box::new(ZlibDecoder::new(stream)),
        };
        Ok(Self { file, array, affine_mm: header.affine_mm, voxel_file, stream })
    }

    pub fn geometry(&self, orientation: Orientation) -> Result<Geometry, ReadError> {
        let [columns, rows, slices] = self.array.dim;
        Geometry::oriented([slices, rows, columns], self.affine_mm, orientation, self.file)
    }

    /// The files that hold the header and the voxels.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.file.to_owned()];
        if self.voxel_file != self.file {
            files.push(self.voxel_file.clone());
        }
        files
    }

    pub fn read<T: FromNumber>(
        self,
        orientation: Orientation,
        conversion: &T::Conversion<'_>,
    ) -> Result<Volume<T>, ReadError> {
        let geometry = self.geometry(orientation)?;
        let stored = self.array.read(&self.voxel_file, self.stream, conversion)?;
        let voxels = geometry.axis_mapping().to_array(stored, self.array.dim);
        Ok(Volume::new(voxels, Some(geometry)))
    }
}

enum HeaderError {
    Io(std::io::Error),
    Invalid(String),
}

/// The keys of a header, in lower case, and their values.
struct Fields(HashMap<String, String>);

impl Fields {
    /// Reads the lines of a header up to its end: an empty line of NRRD, the key `ElementDataFile` of
    /// MetaImage.
    fn read(stream: &mut impl BufRead, format: TextFormat) -> Result<Self, HeaderError> {
        let mut fields = HashMap::new();
        for number in 0..MAX_LINES {
            let mut line = Vec::new();
            stream
                .by_ref()
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line)
                .map_err(HeaderError::Io)?;
            // A detached header may end without a line break after its last field.
            let is_last =
                line.to_ascii_lowercase().starts_with(b"elementdatafile") && line.len() < 4096;
            if !line.ends_with(b"\n") && !is_last {
                let is_end = format == TextFormat::Nrrd && line.is_empty();
                return if is_end {
                    Ok(Self(fields))
                } else {
                    Err(HeaderError::Invalid("its header has no end".to_owned()))
                };
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            let is_comment = line.starts_with('#') || line.contains(":=");
            match format {
                TextFormat::Nrrd if line.is_empty() => return Ok(Self(fields)),
                TextFormat::Nrrd if number == 0 || is_comment => continue,
                _ => {}
            }
            let separator = if format == TextFormat::Nrrd { ':' } else { '=' };
            let Some((key, value)) = line.split_once(separator) else {
                return Err(HeaderError::Invalid(format!("line {} is not a field", number + 1)));
            };
            let key = key.trim().to_lowercase();
            let is_last = format == TextFormat::MetaImage && key == "elementdatafile";
            fields.insert(key, value.trim().to_owned());
            if is_last {
                return Ok(Self(fields));
            }
        }
        Err(HeaderError::Invalid("its header has no end".to_owned()))
    }

    /// The value of the first of some keys that exists.
    fn get(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.0.get(*key)).map(String::as_str)
    }

    fn required(&self, keys: &[&str]) -> Result<&str, String> {
        self.get(keys).ok_or_else(|| format!("its header has no `{}`", keys[0]))
    }

    /// Numbers that are separated by spaces, commas or parentheses.
    fn numbers(&self, keys: &[&str]) -> Result<Option<Vec<f64>>, String> {
        let Some(value) = self.get(keys) else { return Ok(None) };
        let words = value.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | ','));
        let words = words.filter(|word| !word.is_empty());
        let numbers: Option<Vec<f64>> = words.map(|word| word.parse().ok()).collect();
        match numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite())) {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(format!("its `{}` is `{value}`", keys[0])),
        }
    }

    /// As [`numbers`](Self::numbers), a fixed number of them.
    fn vector<const N: usize>(&self, keys: &[&str]) -> Result<Option<[f64; N]>, String> {
        let Some(numbers) = self.numbers(keys)? else { return Ok(None) };
        let found = numbers.len();
        let vector = numbers.try_into();
        vector.map(Some).map_err(|_| format!("its `{}` has {found} numbers, not {N}", keys[0]))
    }

    fn dim(&self, keys: &[&str]) -> Result<[usize; 3], String> {
        let expected = "expected one volume with three axes; export one channel or time point";
        let found = self.required(keys)?;
        let Ok(Some(dim)) = self.vector::<3>(keys) else {
            return Err(format!("its array has the axes {found}, {expected}"));
        };
        let is_axis =
            |length: &f64| length.fract() == 0.0 && (1.0..=u16::MAX.into()).contains(length);
        if dim.iter().all(is_axis) {
            Ok(dim.map(|length| length as usize))
        } else {
            Err(format!("its array has the axes {found}, {expected}"))
        }
    }
}

/// Axes in a space whose first two axes may run to the left and to the back.
fn affine(directions: [[f64; 3]; 3], origin: [f64; 3], signs: [f64; 3]) -> [[f64; 4]; 3] {
    std::array::from_fn(|world| {
        let [column, row, slice] = directions.map(|direction| signs[world] * direction[world]);
        [column, row, slice, signs[world] * origin[world]]
    })
}

fn nrrd_type(name: &str) -> Result<VoxelType, String> {
    Ok(match name.to_lowercase().as_str() {
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => VoxelType::U8,
        "signed char" | "int8" | "int8_t" => VoxelType::I8,
        "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => {
            VoxelType::U16
        }
        "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => {
            VoxelType::I16
        }
        "uint" | "unsigned int" | "uint32" | "uint32_t" => VoxelType::U32,
        "int" | "signed int" | "int32" | "int32_t" => VoxelType::I32,
        "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => {
            VoxelType::U64
        }
        "longlong"
        | "long long"
        | "long long int"
        | "signed long long"
        | "signed long long int"
        | "int64"
        | "int64_t" => VoxelType::I64,
        "float" => VoxelType::F32,
        "double" => VoxelType::F64,
        other => return Err(format!("its type is `{other}`, which is not supported")),
    })
}

fn nrrd(fields: &Fields) -> Result<Header, String> {
    let voxel_type = nrrd_type(fields.required(&["type"])?)?;
    let dim = fields.dim(&["sizes"])?;
    let kinds = fields.get(&["kinds"]).unwrap_or_default().to_lowercase();
    let is_axis = |kind: &str| matches!(kind, "domain" | "space" | "none" | "???");
    if let Some(kind) = kinds.split_whitespace().find(|kind| !is_axis(kind)) {
        return Err(format!("one of its axes is of kind `{kind}`, not one of space"));
    }
    let compression = match fields.required(&["encoding"])?.to_lowercase().as_str() {
        "raw" => Compression::None,
        "gzip" | "gz" => Compression::Gzip,
        other => return Err(format!("its encoding is `{other}`; expected raw or gzip")),
    };
    let order = match fields.get(&["endian"]).map(str::to_lowercase).as_deref() {
        Some("little") => ByteOrder::Little,
        Some("big") => ByteOrder::Big,
        None if voxel_type.bytes() == 1 => ByteOrder::Little,
        _ => return Err("its header does not say whether it is little or big endian".to_owned()),
    };
    // Without a space, the axes are taken as ITK takes them: to the left, to the back, to the head.
    let space = fields.get(&["space"]).unwrap_or("left-posterior-superior").to_lowercase();
    let signs = match space.as_str() {
        "left-posterior-superior" | "lps" => [-1.0, -1.0, 1.0],
        "right-anterior-superior" | "ras" => [1.0, 1.0, 1.0],
        "left-anterior-superior" | "las" => [-1.0, 1.0, 1.0],
        other => return Err(format!("its space is `{other}`, not one of the patient")),
    };
    let directions = match fields.vector::<9>(&["space directions"])? {
        Some(d) => [[d[0], d[1], d[2]], [d[3], d[4], d[5]], [d[6], d[7], d[8]]],
        None => diagonal(fields.vector::<3>(&["spacings"])?.unwrap_or([1.0; 3])),
    };
    let minimum = match fields.get(&["space"]) {
        None => fields.vector::<3>(&["axis mins", "axismins"]).ok().flatten(),
        Some(_) => None,
    };
    let origin = fields.vector::<3>(&["space origin"])?.or(minimum).unwrap_or_default();
    for key in ["line skip", "lineskip"] {
        if fields.get(&[key]).is_some_and(|lines| lines != "0") {
            return Err(format!("its header has `{key}`, which is not supported"));
        }
    }
    let skip = match fields.get(&["byte skip", "byteskip"]).unwrap_or("0") {
        "-1" if compression == Compression::None => Skip::ToEnd,
        bytes => Skip::Bytes(bytes.parse().map_err(|_| format!("its `byte skip` is {bytes}"))?),
    };
    if compression != Compression::None && skip != Skip::Bytes(0) {
        return Err(
            "its header skips bytes of compressed voxels, which is not supported".to_owned()
        );
    }
    let voxel_file = fields.get(&["data file", "datafile"]).map(str::to_owned);
    let is_list = voxel_file
        .as_deref()
        .is_some_and(|name| name.to_uppercase().starts_with("LIST") || name.contains('%'));
    if is_list {
        return Err("its voxels are in several files; save it as one".to_owned());
    }
    let affine_mm = affine(directions, origin, signs);
    Ok(Header { voxel_type, order, dim, affine_mm, compression, voxel_file, skip })
}

fn diagonal(spacing: [f64; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|axis| {
        let mut direction = [0.0; 3];
        direction[axis] = spacing[axis];
        direction
    })
}

fn meta_image(fields: &Fields) -> Result<Header, String> {
    let voxel_type = match fields.required(&["elementtype"])?.to_uppercase().as_str() {
        "MET_UCHAR" => VoxelType::U8,
        "MET_CHAR" => VoxelType::I8,
        "MET_USHORT" => VoxelType::U16,
        "MET_SHORT" => VoxelType::I16,
        "MET_UINT" => VoxelType::U32,
        "MET_INT" => VoxelType::I32,
        "MET_ULONG_LONG" => VoxelType::U64,
        "MET_LONG_LONG" => VoxelType::I64,
        "MET_FLOAT" => VoxelType::F32,
        "MET_DOUBLE" => VoxelType::F64,
        other => return Err(format!("its element type is `{other}`, which is not supported")),
    };
    let dim = fields.dim(&["dimsize"])?;
    let is_true = |keys: &[&str]| {
        fields.get(keys).is_some_and(|value| matches!(value.to_lowercase().as_str(), "true" | "1"))
    };
    if fields.get(&["elementnumberofchannels"]).is_some_and(|channels| channels != "1") {
        return Err("its voxels have several channels; export one".to_owned());
    }
    if fields.get(&["binarydata"]).is_some() && !is_true(&["binarydata"]) {
        return Err("its voxels are text, which is not supported; save them as binary".to_owned());
    }
    let order = match is_true(&["binarydatabyteordermsb", "elementbyteordermsb"]) {
        true => ByteOrder::Big,
        false => ByteOrder::Little,
    };
    let compression = match is_true(&["compresseddata"]) {
        true => Compression::Zlib,
        false => Compression::None,
    };
    let spacing = fields.vector::<3>(&["elementspacing", "elementsize"])?.unwrap_or([1.0; 3]);
    let cosines = fields.vector::<9>(&["transformmatrix", "rotation", "orientation"])?;
    // Each row is the direction of an axis of the array.
    let c = cosines.unwrap_or([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    let directions = std::array::from_fn(|axis| {
        std::array::from_fn(|world| c[3 * axis + world] * spacing[axis])
    });
    let origin = fields.vector::<3>(&["offset", "position", "origin"])?.unwrap_or_default();
    let skip = match fields.get(&["headersize"]).unwrap_or("0") {
        "-1" if compression == Compression::None => Skip::ToEnd,
        bytes => Skip::Bytes(bytes.parse().map_err(|_| format!("its `HeaderSize` is {bytes}"))?),
    };
    let voxel_file = match fields.required(&["elementdatafile"])? {
        "LOCAL" | "Local" | "local" => None,
        name if name.to_uppercase().starts_with("LIST") || name.contains('%') => {
            return Err("its voxels are in several files; save it as one".to_owned());
        }
        name => Some(name.to_owned()),
    };
    // To the left, to the back, to the head.
    let affine_mm = affine(directions, origin, [-1.0, -1.0, 1.0]);
    Ok(Header { voxel_type, order, dim, affine_mm, compression, voxel_file, skip })
}

fn format_error(file: &Path, format: TextFormat, found: String) -> ReadError {
    let expected = match format {
        TextFormat::Nrrd => "NRRD file",
        TextFormat::MetaImage => "MetaImage file (.mha, .mhd)",
    };
    let remedy = "correct its header, or convert it to NIfTI";
    ReadError::Format { file: file.to_owned(), expected, found, remedy }
}

use crate::model::SliceGeometry;
use sam_lst_datasets::ndarray::ArrayView3;
use sam_lst_datasets::{Pose, View};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// Identity of an embedding. Two inputs of the foundation that may differ have different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmbeddingKey(u128);

impl EmbeddingKey {
    /// Hashes `parts` in order: the slice's pixels, the view, and everything that is applied to
    /// them before the foundation.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut hash = Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.digest128())
    }

    fn bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for EmbeddingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Hash of a slice's shape and pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SliceHash(EmbeddingKey);

impl SliceHash {
    /// Hashes a whole slice as read, before any view or resampling.
    ///
    /// # Shapes
    ///
    /// - slice: `[channels, rows, columns]`
    pub fn new(slice: ArrayView3<'_, f32>) -> Self {
        let (channels, rows, columns) = slice.dim();
        let shape = match channels {
            1 => format!("{rows} {columns}"),
            channels => format!("{channels} {rows} {columns}"),
        };
        let pixels: Vec<u8> = slice.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        Self(EmbeddingKey::new(&[shape.as_bytes(), &pixels]))
    }

    pub(crate) fn key(self) -> EmbeddingKey {
        self.0
    }

    /// The shard, from 0, of `count` that this slice belongs to.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    pub(crate) fn shard(self, count: usize) -> usize {
        (self.0.0 % count as u128) as usize
    }
}

/// An input of the foundation: a slice, a view of it, and how it is brought to the network's size; and
/// how its features are moved afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceView {
    view: View,
    pose: Option<Pose>,
    key: EmbeddingKey,
}

impl SliceView {
    /// A slice in `view`, then resampled to `input_size` by `geometry`, whose features are not moved.
    pub fn new(slice: SliceHash, view: View, geometry: SliceGeometry, input_size: usize) -> Self {
        let name = view.to_string();
        let parts: [&[u8]; 3] = [&slice.0.bytes(), name.as_bytes(), &geometry.key(input_size)];
        Self { view, pose: None, key: EmbeddingKey::new(&parts) }
    }

    /// With features that are moved as a pose moves the slice. The embedding stays the same.
    pub fn with_pose(self, pose: Option<Pose>) -> Self {
        Self { pose, ..self }
    }

    /// The view that the foundation encodes.
    pub fn view(&self) -> View {
        self.view
    }

    /// How the features are moved after the foundation computed them.
    pub fn pose(&self) -> Option<Pose> {
        self.pose
    }

    /// The key of its embedding.
    pub fn key(&self) -> EmbeddingKey {
        self.key
    }
}

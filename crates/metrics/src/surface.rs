//! Masks within a bounding box, and their surfaces.

use crate::LabelVolume;

/// An axis-aligned box of voxels: its first voxel and its size along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub start: [usize; 3],
    pub shape: [usize; 3],
}

impl Region {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bounding box of the voxels of a class in two volumes of the same shape; `None` if the
    /// class is absent from both.
    pub fn bounding(volumes: [&LabelVolume<'_>; 2], class: u8) -> Option<Self> {
        let shape = volumes[0].shape();
        let (mut low, mut high) = ([usize::MAX; 3], [0; 3]);
        for volume in volumes {
            let rows = volume.labels().chunks_exact(shape[2].max(1));
            for (row, labels) in rows.enumerate() {
                let Some(first) = labels.iter().position(|&l| l == class) else {
                    continue;
                };
                let last = labels.iter().rposition(|&l| l == class).unwrap_or(first);
                let (slice, line) = (row / shape[1], row % shape[1]);
                for (axis, [from, to]) in
                    [[slice; 2], [line; 2], [first, last]].into_iter().enumerate()
                {
                    low[axis] = low[axis].min(from);
                    high[axis] = high[axis].max(to + 1);
                }
            }
        }
        (low[0] != usize::MAX)
            .then(|| Self { start: low, shape: std::array::from_fn(|axis| high[axis] - low[axis]) })
    }

    /// The mask of the class within the region, in the order of the volume.
    pub fn mask(&self, volume: &LabelVolume<'_>, class: u8) -> Vec<bool> {
        let [_, height, width] = volume.shape();
        let mut mask = Vec::with_capacity(self.len());
        for slice in 0..self.shape[0] {
            for line in 0..self.shape[1] {
                let row = (self.start[0] + slice) * height + self.start[1] + line;
                let from = row * width + self.start[2];
                let labels = &volume.labels()[from..from + self.shape[2]];
                mask.extend(labels.iter().map(|&label| label == class));
            }
        }
        mask
    }
}

/// The indices of the mask's voxels that have a face neighbour outside the mask. The region
/// contains the whole mask, so everything beyond the region counts as outside, but for slices above
/// and below a picture.
pub(crate) fn surface(
    mask: &[bool],
    [slices, lines, width]: [usize; 3],
    is_picture: bool,
) -> Vec<usize> {
    let plane = lines * width;
    let mut surface = Vec::new();
    for z in 0..slices {
        for y in 0..lines {
            let row = z * plane + y * width;
            for x in 0..width {
                let i = row + x;
                let inside = mask[i]
                    && x > 0
                    && mask[i - 1]
                    && x + 1 < width
                    && mask[i + 1]
                    && y > 0
                    && mask[i - width]
                    && y + 1 < lines
                    && mask[i + width]
                    && (is_picture
                        || z > 0 && mask[i - plane] && z + 1 < slices && mask[i + plane]);
                if mask[i] && !inside {
                    surface.push(i);
                }
            }
        }
    }
    surface
}

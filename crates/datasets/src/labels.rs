use std::fmt;

/// Maps the label numbers in files to classes 0..K, where 0 is the background.
#[derive(Clone, PartialEq, Eq)]
pub struct LabelMap {
    class_of: [Option<u8>; 256],
    /// Indexed by class.
    label_of: Vec<u8>,
}

impl LabelMap {
    /// A map for files whose labels are classes already: 0 to `classes - 1`.
    ///
    /// # Panics
    ///
    /// If `classes` is not in 1..=256.
    pub fn identity(classes: usize) -> Self {
        assert!((1..=256).contains(&classes), "expected 1 to 256 classes, found {classes}");
        let mut map = Self { class_of: [None; 256], label_of: Vec::with_capacity(classes) };
        for class in 0..classes as u16 {
            let class = class as u8; // below 256
            map.class_of[usize::from(class)] = Some(class);
            map.label_of.push(class);
        }
        map
    }

    /// A map from the labels of each organ, which become classes 1, 2, …, and the labels that are
    /// background in addition to 0.
    ///
    /// # Panics
    ///
    /// If an organ has no label, or there are more than 255 organs.
    pub fn new(organs: &[Vec<u8>], ignored: &[u8]) -> Self {
        let mut map = Self::identity(1);
        for &label in ignored {
            map.class_of[usize::from(label)] = Some(0);
        }
        for (class, labels) in (1_usize..).zip(organs) {
            let class = u8::try_from(class).expect("at most 255 organs");
            for &label in labels {
                map.class_of[usize::from(label)] = Some(class);
            }
            map.label_of.push(*labels.first().expect("an organ has a label"));
        }
        map
    }

    /// The class of a label, `None` if the label is unknown.
    pub fn class_of(&self, label: u8) -> Option<u8> {
        self.class_of[usize::from(label)]
    }

    /// The (first) label of a class.
    ///
    /// # Panics
    ///
    /// If the class does not exist.
    pub fn label_of(&self, class: u8) -> u8 {
        self.label_of[usize::from(class)]
    }

    /// Number of classes, including the background.
    pub fn classes(&self) -> usize {
        self.label_of.len()
    }
}

/// The known labels, as ranges.
impl fmt::Display for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<u8> =
            (0..=u8::MAX).filter(|&label| self.class_of(label).is_some()).collect();
        for (i, range) in known.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            match range {
                [only] => write!(f, "{comma}{only}")?,
                [first, .., last] => write!(f, "{comma}{first} to {last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LabelMap({self})")
    }
}

use serde::{Deserialize, Serialize};
use std::fmt;

/// Maps the label numbers in files to classes 0..K, where 0 is the background.
#[derive(Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// The class of each label up to the largest with a meaning of its own; `None` if it is unknown.
    class_of: Vec<Option<u8>>,
    /// The class of all larger labels.
    others: Option<u8>,
    /// Indexed by class.
    label_of: Vec<u16>,
}

impl LabelMap {
    /// A map for files whose labels are classes already: 0 to `classes - 1`.
    ///
    /// # Panics
    ///
    /// If `classes` is not in 1..=256.
    pub fn identity(classes: usize) -> Self {
        assert!((1..=256).contains(&classes), "expected 1 to 256 classes, found {classes}");
        let class_of = (0..classes).map(|class| Some(class as u8)).collect();
        Self { class_of, others: None, label_of: (0..classes as u16).collect() }
    }

    /// A map from the labels of each organ, which become classes 1, 2, …, and the labels that are
    /// background in addition to 0.
    ///
    /// # Panics
    ///
    /// If an organ has no label, or there are more than 255 organs.
    pub fn new(organs: &[Vec<u16>], ignored: &IgnoredLabels) -> Self {
        let mut map = Self::identity(1);
        match ignored {
            IgnoredLabels::Listed(labels) => labels.iter().for_each(|&label| map.set(label, 0)),
            IgnoredLabels::Others => map.others = Some(0),
        }
        for (class, labels) in (1_usize..).zip(organs) {
            let class = u8::try_from(class).expect("at most 255 organs");
            for &label in labels {
                map.set(label, class);
            }
            map.label_of.push(*labels.first().expect("an organ has a label"));
        }
        map
    }

    fn set(&mut self, label: u16, class: u8) {
        let index = usize::from(label);
        if index >= self.class_of.len() {
            self.class_of.resize(index + 1, self.others);
        }
        self.class_of[index] = Some(class);
    }

    /// The class of a label, `None` if the label is unknown.
    pub fn class_of(&self, label: u16) -> Option<u8> {
        self.class_of.get(usize::from(label)).copied().unwrap_or(self.others)
    }

    /// The (first) label of a class.
    ///
    /// # Panics
    ///
    /// If the class does not exist.
    pub fn label_of(&self, class: u8) -> u16 {
        self.label_of[usize::from(class)]
    }

    /// All labels with a meaning of their own, ascending.
    pub(crate) fn known(&self) -> Vec<u16> {
        let labels = self.class_of.iter().zip(0..);
        labels.filter(|(class, _)| class.is_some()).map(|(_, label)| label).collect()
    }

    /// Number of classes, including the background.
    pub fn classes(&self) -> usize {
        self.label_of.len()
    }
}

/// Labels that are background, in addition to 0.
///
/// In a description: a list of numbers, or `"others"` for every label that no organ has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ignored", into = "Ignored")]
pub enum IgnoredLabels {
    /// These. A label that is neither here nor in an organ is an error.
    Listed(Vec<u16>),
    /// Every label that no organ has.
    Others,
}

impl IgnoredLabels {
    /// Whether these are listed, so that a label that is named nowhere is an error.
    pub(crate) fn are_listed(&self) -> bool {
        matches!(self, Self::Listed(_))
    }

    /// The listed labels; empty for [`Others`](Self::Others).
    pub fn listed(&self) -> &[u16] {
        match self {
            Self::Listed(labels) => labels,
            Self::Others => &[],
        }
    }
}

impl Default for IgnoredLabels {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// As written in a description.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of label numbers from 0 to 65535, or \"others\"")]
enum Ignored {
    Listed(Vec<u16>),
    Word(String),
}

impl TryFrom<Ignored> for IgnoredLabels {
    type Error = String;

    fn try_from(ignored: Ignored) -> Result<Self, String> {
        match ignored {
            Ignored::Listed(labels) => Ok(Self::Listed(labels)),
            Ignored::Word(word) if word == "others" => Ok(Self::Others),
            Ignored::Word(word) => Err(format!(
                "ignored_labels = \"{word}\" has no meaning; give a list of numbers, or \"others\" \
                 for every label that no organ has"
            )),
        }
    }
}

impl From<IgnoredLabels> for Ignored {
    fn from(ignored: IgnoredLabels) -> Self {
        match ignored {
            IgnoredLabels::Listed(labels) => Self::Listed(labels),
            IgnoredLabels::Others => Self::Word("others".to_owned()),
        }
    }
}

/// Ascending label numbers as ranges, such as "0 to 4, 6".
pub fn label_ranges(labels: impl IntoIterator<Item = u16>) -> String {
    let labels: Vec<u16> = labels.into_iter().collect();
    let range = |range: &[u16]| match range {
        [only] => only.to_string(),
        [first, .., last] => format!("{first} to {last}"),
        [] => String::new(),
    };
    let ranges: Vec<String> =
        labels.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(range).collect();
    ranges.join(", ")
}

/// The known labels, as ranges.
impl fmt::Display for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = (0..=u16::MAX).filter(|&label| self.class_of(label).is_some());
        f.write_str(&label_ranges(known))
    }
}

impl fmt::Debug for LabelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LabelMap({self})")
    }
}

use ndarray::{Array2, Array3};
use safetensors::{Dtype, SafeTensors};
use std::path::PathBuf;
use std::sync::Mutex;

pub use sam_lst_datasets::ndarray;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

/// Expected arrays that other programs computed.
pub struct Cases(Vec<u8>);

impl Cases {
    pub fn open(name: &str) -> Self {
        Self(std::fs::read(fixture(name).join("cases.safetensors")).expect("fixture"))
    }

    pub fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.0).expect("fixture");
        tensors.names().into_iter().map(str::to_owned).collect()
    }

    /// The numbers of a tensor and its shape.
    pub fn numbers(&self, name: &str) -> (Vec<f64>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.0).expect("fixture");
        let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("fixture has no {name}"));
        let bytes = tensor.data();
        macro_rules! numbers {
            ($type:ty) => {{
                let chunks = bytes.as_chunks::<{ size_of::<$type>() }>().0.iter();
                chunks.map(|&chunk| <$type>::from_le_bytes(chunk) as f64).collect()
            }};
        }
        let numbers = match tensor.dtype() {
            Dtype::U8 => numbers!(u8),
            Dtype::I16 => numbers!(i16),
            Dtype::F32 => numbers!(f32),
            Dtype::F64 => numbers!(f64),
            other => panic!("{name} is {other:?}"),
        };
        (numbers, tensor.shape().to_vec())
    }

    pub fn plane<T>(&self, name: &str, convert: impl Fn(f64) -> T) -> Array2<T> {
        let (numbers, shape) = self.numbers(name);
        let numbers = numbers.into_iter().map(convert).collect();
        Array2::from_shape_vec((shape[0], shape[1]), numbers).expect("fixture")
    }

    pub fn volume(&self, name: &str) -> Array3<f64> {
        let (numbers, shape) = self.numbers(name);
        Array3::from_shape_vec((shape[0], shape[1], shape[2]), numbers).expect("fixture")
    }
}

/// Warnings that were logged, of all tests; a test finds its own by the names of its files.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().expect("no panic").push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Collects warnings from now on.
pub fn collect_warnings() {
    // Another test may have done so already.
    let _ = log::set_logger(&WARNINGS);
    log::set_max_level(log::LevelFilter::Warn);
}

/// The collected warnings that contain a text.
pub fn warnings_with(text: &str) -> Vec<String> {
    let warnings = WARNINGS.0.lock().expect("no panic");
    warnings.iter().filter(|warning| warning.contains(text)).cloned().collect()
}

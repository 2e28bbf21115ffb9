//! Tests against nibabel, numpy, h5py, scipy and torch, and with invalid files.

mod bad_input;
mod description;
mod dicom;
mod dicom_structures;
mod inspection;
mod layouts;
mod nifti;
mod phantom;
mod pictures;
mod poses;
mod resample;
mod support;
mod synapse;
mod text_header;
mod views;

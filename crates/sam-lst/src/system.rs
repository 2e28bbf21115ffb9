//! What a program sets up or asks of its process: the compute pool and the peak memory.

/// Adds the calling thread to the CPU compute pool; the number of threads stays the same. Returns
/// whether the thread was added.
///
/// Without it, each operation is handed to another thread and waited for, which takes longer than
/// a small operation itself. Call it first in `main`, from the thread that trains or segments: it
/// builds the global pool of [rayon], which nothing may have used before. On a single core it does
/// nothing, because that core's only pool thread must stay free for other threads' work.
///
/// [rayon]: https://docs.rs/rayon
pub fn compute_on_current_thread() -> bool {
    // The same rule as rayon's own default.
    let requested = std::env::var("RAYON_NUM_THREADS").ok();
    let requested = requested.and_then(|number| number.parse().ok());
    let threads = match requested {
        None | Some(0) => std::thread::available_parallelism().map_or(1, usize::from),
        Some(threads) => threads,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    threads > 1 && pool.build_global().is_ok()
}

/// Peak resident memory of this process in bytes, as Linux counts it; `None` on other systems.
/// Memory of an accelerator is not included.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}

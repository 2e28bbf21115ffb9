/// Makes this thread one of those that compute on the CPU; there are as many as before. Returns whether it is one now.
///
/// Otherwise each operation is handed to other threads and waited for, which takes longer than a small one itself. Call it first
/// in `main`, as the choice of an allocator is the program's: it sets up the pool of threads, [rayon]'s global one, which nothing
/// may have used before, and this thread should be the one that trains or segments. Where there is a single core, nothing
/// changes, since other threads have work for the pool, too.
///
/// [rayon]: https://docs.rs/rayon
pub fn compute_on_this_thread() -> bool {
    // As rayon itself counts.
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    let asked = asked.and_then(|number| number.parse().ok());
    let threads = match asked {
        None | Some(0) => std::thread::available_parallelism().map_or(1, usize::from),
        Some(threads) => threads,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread();
    threads > 1 && pool.build_global().is_ok()
}

//! Owns the gates of the paper's fill: the time of each kernel against the plain reference.

use std::hint::black_box;
use std::time::{Duration, Instant};

use guideway::balance::table::kernel::Kernel;
use guideway::balance::table::paper;

use crate::gates::Gate;
use crate::movement::{SEED, SIZE};
use crate::reference;
use crate::timing::{CALM, quantile};

const ROUNDS: usize = 41;

/// All gates of the paper's fill.
pub(crate) fn gates() -> Vec<Gate> {
    [10, 50, 100, 1_000, 5_000].into_iter().flat_map(ratios).collect()
}

fn ratios(backends: usize) -> Vec<Gate> {
    let names: Vec<String> =
        (0..backends).map(|index| format!("10.{}.{}.7:8080", index / 250, index % 250)).collect();
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    let weights = vec![1; backends];
    let with = |kernel| paper::fill_with(kernel, &names, &weights, SIZE, SEED);
    let is_listing = [Kernel::Portable, Kernel::detect()]
        .into_iter()
        .all(|kernel| with(kernel).slots() == reference::fill(&names, SIZE, SEED));
    let (mut plain, mut portable, mut detected) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        plain.push(timed(|| reference::fill(&names, SIZE, SEED)));
        portable.push(timed(|| with(Kernel::Portable)));
        detected.push(timed(|| with(Kernel::detect())));
    }
    let plain = quantile(&mut plain, CALM);
    let gate = |name: &str, goal: f64, times: &mut [Duration]| {
        let time = quantile(times, CALM);
        let ratio = time.as_secs_f64() / plain.as_secs_f64();
        let name = format!("paper fill / plain, N={backends}, {name}");
        let figure =
            format!("{ratio:.2} ({:.0} / {:.0} us)", time.as_secs_f64() * 1e6, plain.as_secs_f64() * 1e6);
        match backends {
            1_000 => Gate::new(name, format!("<= {goal}"), figure, ratio <= goal && is_listing),
            _ => Gate::note(name, figure),
        }
    };
    let equal = Gate::new(
        format!("paper fill, N={backends}: all kernels equal the listing"),
        "yes",
        if is_listing { "yes" } else { "no" },
        is_listing,
    );
    let mut gates = vec![equal, gate("no SIMD", 0.7, &mut portable)];
    if Kernel::detect() != Kernel::Portable {
        gates.push(gate("AVX2", 0.5, &mut detected));
    }
    gates
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

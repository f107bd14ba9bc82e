//! What must hold whatever is read: one function for each thing that reads what somebody else
//! wrote. A function takes any bytes and panics where the promise is broken.
//!
//! libFuzzer calls them with bytes that it makes up (`fuzz/targets`), the test `tests/fuzz.rs` with
//! those that it found worth keeping (`fuzz/corpus`).

mod agent;
pub mod choice;
mod codec;
mod configuration;
mod inventory;
mod labels;
mod lists;
mod machine;
mod placement;

pub use agent::agent;
pub use codec::codec;
pub use configuration::configuration;
pub use inventory::inventory;
pub use labels::labels;
pub use lists::lists;
pub use machine::machine;
pub use placement::placement;

/// One thing to try, by the name of its directory in `fuzz/corpus`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("agent", agent),
    ("codec", codec),
    ("configuration", configuration),
    ("inventory", inventory),
    ("labels", labels),
    ("lists", lists),
    ("machine", machine),
    ("placement", placement),
];

/// Plays `story` in a time that is not that of the clock: it goes on when everybody waits.
fn in_own_time(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.expect("a runtime can be made").block_on(story);
}

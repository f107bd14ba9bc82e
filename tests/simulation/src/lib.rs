//! Stories about the model of a machine (`vcpud::machine::model`), with a simulated QEMU, guest, host and
//! clock.
//!
//! The same story always has the same result. [`tell`] panics if the model breaks a promise. The tests
//! (`tests/stories`) and the fuzz target (`fuzz/src/machine.rs`) tell stories from here.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise ends the story"
)]

mod bus;
mod calls;
mod disk;
mod guest;
mod host;
mod jobs;
mod ledger;
mod promises;
mod qemu;
mod settle;
mod step;
mod take;
mod world;

pub use step::{Fault, Part, Setup, Step, Story};

/// Tells `story` to its end, where everything settles.
///
/// # Panics
/// Panics if the model breaks a promise.
pub fn tell(story: &Story) {
    let mut world = world::World::new(story.setup);
    for step in &story.steps {
        if world.is_over() {
            break;
        }
        world.take(step);
    }
    world.settle();
}

//! Random stories about the model of a machine (`tests/simulation`), in simulated time. At the end of each,
//! clients know what QEMU has, and every caller was answered.
//!
//! A story that fails is shrunk and printed. `VCPUD_STORIES` is the number of stories, and
//! `VCPUD_STORIES_SEED` the seed.

use std::num::NonZero;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use simulation::{Setup, Step, Story};

/// The number of stories of a run that takes half a minute.
const STORIES: u32 = 40_000;
/// The longest story.
const STEPS: usize = 40;

fn story() -> impl Strategy<Value = Story> {
    let setup = any::<[u8; 4]>().prop_map(Setup::new);
    let steps = prop::collection::vec(any::<[u8; 4]>().prop_map(Step::new), 0..STEPS);
    (setup, steps).prop_map(|(setup, steps)| Story { setup, steps })
}

/// Returns the number in the environment variable `name`.
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Tells `count` stories. Returns the failure, if there is one.
fn tell(seed: u64, thread: u64, count: u32) -> Result<(), TestError<Story>> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&thread.to_le_bytes());
    let config = Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(config, rng).run(&story(), |story| {
        simulation::tell(&story);
        Ok(())
    })
}

#[test]
fn any_story_ends_with_the_truth() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("VCPUD_STORIES_SEED").unwrap_or(clock.as_secs());
    let stories = number("VCPUD_STORIES").unwrap_or(STORIES);
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u32;
    let start = Instant::now();
    let failures: Vec<_> = thread::scope(|scope| {
        let tellers = (0..threads).map(|thread| {
            let count = stories.div_ceil(threads);
            scope.spawn(move || tell(seed, thread.into(), count).err())
        });
        let tellers: Vec<_> = tellers.collect();
        let failures = tellers.into_iter().map(|teller| teller.join().unwrap());
        failures.flatten().collect()
    });
    let speed = f64::from(stories) / start.elapsed().as_secs_f64();
    let text = format!("{stories} stories with seed {seed}, {speed:.0} per second");
    assert!(failures.is_empty(), "{text}: {failures:#?}");
    #[expect(clippy::print_stdout, reason = "the result of the test")]
    {
        println!("{text}");
    }
}

//! The configuration of the service, and its errors as clients see them.

use std::fs;

use super::wait::within;
use super::world::World;

impl World {
    /// Writes the file `name` of the configuration.
    pub(crate) fn configure(&self, name: &str, text: &str) {
        let file = self.bus.configuration_directory().join(name);
        let directory = file.parent().expect("it is in a directory");
        fs::create_dir_all(directory).expect("the directory is writable");
        fs::write(file, text).expect("the file is writable");
    }

    /// Waits until the service lists exactly these configuration errors; parts of their texts.
    pub(crate) async fn lists_errors(&self, parts: &[&str]) {
        let manager = self.manager().await;
        let mut signals = self.signals.clone();
        let listed = async {
            loop {
                signals.catch_up();
                let errors = manager.configuration_errors().await;
                let errors = errors.expect("the property is there");
                let mut both = errors.iter().zip(parts);
                if errors.len() == parts.len() && both.all(|(error, part)| error.contains(part)) {
                    return;
                }
                signals.next().await;
            }
        };
        within(format!("{parts:?} in ConfigurationErrors"), listed).await;
    }
}

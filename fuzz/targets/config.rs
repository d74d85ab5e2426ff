//! Files of `--config`: what is taken for good reads back from what it prints, an error lies inside of the text.

use taskvisor::config::file;

/// One input.
pub fn run(text: &str) {
    match file::parse(text) {
        Ok(said) => {
            let again = file::write(&said).expect("what was read can be written");
            assert_eq!(file::parse(&again).as_ref(), Ok(&said), "{again}");
        }
        Err(error) => assert!((1..=text.matches('\n').count() + 1).contains(&error.line), "{error}"),
    }
}

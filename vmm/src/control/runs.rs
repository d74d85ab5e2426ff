//! Whether the control interface holds the guest. One handle for the whole machine, so that a client that pauses and goes away
//! leaves something that the next one can undo; what the debugger holds is its own and isn't touched.

use std::sync::{Mutex, PoisonError};

use crate::vm::run_control::{Paused, RunControl, RunControlError};

/// See the module's text.
#[derive(Debug)]
pub struct Runs {
    control: RunControl,
    held: Mutex<Option<Paused>>,
}

impl Runs {
    /// Over a machine's vCPUs.
    pub fn new(control: RunControl) -> Self {
        Self { control, held: Mutex::new(None) }
    }

    /// Stops all vCPUs. Stopping a stopped machine changes nothing.
    pub fn pause(&self) -> Result<(), RunControlError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(self.control.pause()?);
        }
        Ok(())
    }

    /// Lets them go on, as far as the control interface holds them.
    pub fn resume(&self) {
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether anybody holds them.
    pub fn paused(&self) -> bool {
        self.control.paused()
    }

    /// Waits until nobody holds it.
    pub async fn until_running(&self) {
        self.control.until_running().await;
    }
}

//! What a user asks of the guest's clock, as the flags say it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vcpu_sched::clock::Rate;

/// Who makes the guest's counter what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TscMode {
    /// The CPU where that is seen to work, else the clock page.
    #[default]
    Auto,
    /// The CPU: RDTSC itself shows it. Refused where a measurement from inside a guest shows no effect.
    Native,
    /// The clock page: every clock shows it, RDTSC doesn't.
    Virtual,
}

impl TscMode {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TscMode::Auto => "auto",
            TscMode::Native => "native",
            TscMode::Virtual => "virtual",
        }
    }
}

/// What virtual time does while the guest is paused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnPause {
    /// It stands still: the guest doesn't see the pause.
    #[default]
    Stop,
    /// It runs on: the guest sees a jump.
    Run,
}

/// By how much clocks are ahead (negative: behind), for one vCPU or for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offset {
    /// `None`: all.
    vcpu: Option<u32>,
    nanos: i64,
}

/// `--tsc-offset`: later entries win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offsets(Vec<Offset>);

/// Why an offset can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OffsetError {
    /// Not a number.
    #[error("'{0}' is no offset: write nanoseconds, or a number with ns, us, ms or s, such as -200us")]
    Number(String),
    /// Not a vCPU's number.
    #[error("'{0}' is no vCPU: write [VCPU=]OFFSET;...")]
    Vcpu(String),
    /// More than a day.
    #[error("'{0}' is more than a day")]
    TooLarge(String),
    /// A vCPU that isn't there.
    #[error("--tsc-offset: there is no vCPU {vcpu}, the last one is {}", vcpus.saturating_sub(1))]
    NoVcpu {
        /// Which.
        vcpu: u32,
        /// How many there are.
        vcpus: u32,
    },
}

/// The largest offset and step: a day.
pub const MAX_NANOS: u64 = 86_400_000_000_000;

/// A signed span of time: a number of nanoseconds, or with a unit.
pub fn parse_nanos(text: &str) -> Result<i64, OffsetError> {
    let wrong = || OffsetError::Number(text.to_owned());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let at = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
    let (digits, unit) = unsigned.split_at(at);
    let unit = match unit {
        "" | "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    if digits.is_empty() {
        return Err(wrong());
    }
    let nanos = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n <= MAX_NANOS);
    let nanos = nanos.and_then(|n| i64::try_from(n).ok()).ok_or_else(|| OffsetError::TooLarge(text.to_owned()))?;
    Ok(if text.starts_with('-') { -nanos } else { nanos })
}

impl FromStr for Offsets {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, OffsetError> {
        let entry = |part: &str| match part.split_once('=') {
            Some((vcpu, nanos)) => {
                let number = vcpu.trim().parse().map_err(|_| OffsetError::Vcpu(vcpu.to_owned()))?;
                Ok(Offset { vcpu: Some(number), nanos: parse_nanos(nanos.trim())? })
            }
            None => Ok(Offset { vcpu: None, nanos: parse_nanos(part.trim())? }),
        };
        text.split(';').filter(|part| !part.trim().is_empty()).map(entry).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Offsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, offset) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ";" };
            match offset.vcpu {
                Some(vcpu) => write!(f, "{separator}{vcpu}={}", offset.nanos)?,
                None => write!(f, "{separator}{}", offset.nanos)?,
            }
        }
        Ok(())
    }
}

impl Offsets {
    /// The offset of each vCPU.
    ///
    /// # Errors
    /// [`OffsetError::NoVcpu`].
    pub fn by_vcpu(&self, vcpus: u32) -> Result<Vec<i64>, OffsetError> {
        let mut all = vec![0; vcpus as usize];
        for offset in &self.0 {
            match offset.vcpu {
                None => all.fill(offset.nanos),
                Some(vcpu) => {
                    *all.get_mut(vcpu as usize).ok_or(OffsetError::NoVcpu { vcpu, vcpus })? = offset.nanos;
                }
            }
        }
        Ok(all)
    }
}

/// Everything that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockSettings {
    /// Frequency that the guest is told and sees; `None`: that of the host.
    pub tsc_khz: Option<u32>,
    /// Who does it.
    pub mode: TscMode,
    /// By how much clocks are ahead.
    pub offsets: Offsets,
    /// How fast virtual time runs.
    pub rate: Rate,
    /// What it does in pauses.
    pub on_pause: OnPause,
}

impl Default for ClockSettings {
    fn default() -> Self {
        Self {
            tsc_khz: None,
            mode: TscMode::Auto,
            offsets: Offsets::default(),
            rate: Rate::REAL,
            on_pause: OnPause::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn offsets_by_vcpu_and_for_all() {
        let by_vcpu = |text: &str| text.parse::<Offsets>().and_then(|offsets| offsets.by_vcpu(3));
        assert_eq!(by_vcpu(""), Ok(vec![0, 0, 0]));
        assert_eq!(by_vcpu("5"), Ok(vec![5, 5, 5]));
        assert_eq!(by_vcpu("1us; 2=-3ms"), Ok(vec![1_000, 1_000, -3_000_000]));
        assert_eq!(by_vcpu("3=1"), Err(OffsetError::NoVcpu { vcpu: 3, vcpus: 3 }));
        assert_eq!(by_vcpu("x=1"), Err(OffsetError::Vcpu("x".into())));
        assert_eq!(by_vcpu("1h"), Err(OffsetError::Number("1h".into())));
        assert_eq!(by_vcpu("-"), Err(OffsetError::Number("-".into())));
        assert_eq!(by_vcpu("86401s"), Err(OffsetError::TooLarge("86401s".into())));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(entries in prop::collection::vec((prop::option::of(0..9u32), -99_999i64..99_999), 0..5)) {
            let offsets = Offsets(entries.into_iter().map(|(vcpu, nanos)| Offset { vcpu, nanos }).collect());
            prop_assert_eq!(offsets.to_string().parse(), Ok(offsets));
        }

        #[test]
        fn no_text_is_a_panic(text in "[-+0-9a-z=; ]{0,30}|\\PC{0,12}") {
            let _ = text.parse::<Offsets>();
        }
    }
}

//! Which partitions a run takes when several runs share a job.

use sha2::{Digest, Sha256};

use crate::output::PartId;

/// One of `of` runs, counted from 0. What a partition is does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

impl Shard {
    /// Reads `2/8`, or `auto`: what the environment of a Slurm array or a Kubernetes indexed job says.
    pub fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let variable = |name: &str| environment(name).and_then(|value| number(&value));
        let shard = match text.split_once('/') {
            Some((index, of)) => number(index).zip(number(of)),
            None if text == "auto" => {
                let first = variable("SLURM_ARRAY_TASK_MIN").unwrap_or(0);
                let slurm = variable("SLURM_ARRAY_TASK_ID").and_then(|id| id.checked_sub(first));
                let kubernetes = variable("JOB_COMPLETION_INDEX");
                let slurm = slurm.zip(variable("SLURM_ARRAY_TASK_COUNT"));
                // Kubernetes tells the index only: the manifest must repeat its `completions` here.
                let shard = slurm.or(kubernetes.zip(variable("JOB_COMPLETIONS")));
                return shard.map(|(index, of)| Self { index, of }).filter(Self::is_one).ok_or_else(|| {
                    "`auto` needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or JOB_COMPLETION_INDEX and JOB_COMPLETIONS (set it to the job's `completions`)".to_owned()
                });
            }
            None => None,
        };
        shard
            .map(|(index, of)| Self { index, of })
            .filter(Self::is_one)
            .ok_or_else(|| format!("`{text}` is no shard; expected `0/8` to `7/8`, or `auto`"))
    }

    fn is_one(&self) -> bool {
        self.index < self.of
    }

    /// Whether a part is this run's.
    pub(super) fn has(&self, part: &PartId) -> bool {
        let digest = Sha256::digest(format!("{}\n{}", part.object_name, part.first_row));
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&digest[..8]);
        u64::from_le_bytes(bytes) % self.of == self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_told_by_hand_or_by_the_environment() {
        let none = |_: &str| None;
        assert_eq!(Shard::parse("2/8", none), Ok(Shard { index: 2, of: 8 }));
        for bad in ["8/8", "x", "1/0", "-1/2", "auto"] {
            assert!(Shard::parse(bad, none).is_err(), "{bad}");
        }
        let slurm = |name: &str| {
            let value = match name {
                "SLURM_ARRAY_TASK_ID" => "5",
                "SLURM_ARRAY_TASK_MIN" => "1",
                "SLURM_ARRAY_TASK_COUNT" => "8",
                _ => return None,
            };
            Some(value.to_owned())
        };
        assert_eq!(Shard::parse("auto", slurm), Ok(Shard { index: 4, of: 8 }));
        let kubernetes = |name: &str| match name {
            "JOB_COMPLETION_INDEX" => Some("3".to_owned()),
            "JOB_COMPLETIONS" => Some("4".to_owned()),
            _ => None,
        };
        assert_eq!(Shard::parse("auto", kubernetes), Ok(Shard { index: 3, of: 4 }));
    }

    #[test]
    fn every_part_has_one_shard() {
        for first_row in 0..200 {
            let part = PartId { object_name: "a".into(), first_row };
            let owners = (0..7).filter(|&index| Shard { index, of: 7 }.has(&part)).count();
            assert_eq!(owners, 1);
        }
    }
}

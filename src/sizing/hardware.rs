//! Devices as their makers describe them.

use std::str::FromStr;

use serde::Serialize;

/// A device's data sheet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Card {
    /// What `--hardware` calls it.
    pub name: &'static str,
    /// Bytes of memory, as the driver reports them.
    pub memory_bytes: u64,
    /// Bytes a second from its memory.
    pub memory_bandwidth: f64,
    /// BF16 operations a second on tensor cores, dense.
    pub bf16_flops: f64,
    /// Bytes a second to other devices of the node, one way.
    pub link_bandwidth: f64,
}

/// The devices of one node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hardware {
    /// How many.
    pub devices: usize,
    /// Of which kind.
    pub card: Card,
}

/// Sources: NVIDIA's data sheets of H100 SXM5, H200 SXM and A100 SXM4; memory as `nvidia-smi` shows it.
const CARDS: [Card; 3] = [
    Card {
        name: "H100-80GB",
        memory_bytes: 81_559 << 20,
        memory_bandwidth: 3.35e12,
        bf16_flops: 989e12,
        link_bandwidth: 450e9,
    },
    Card {
        name: "H200",
        memory_bytes: 143_771 << 20,
        memory_bandwidth: 4.8e12,
        bf16_flops: 989e12,
        link_bandwidth: 450e9,
    },
    Card {
        name: "A100-80GB",
        memory_bytes: 81_920 << 20,
        memory_bandwidth: 2.039e12,
        bf16_flops: 312e12,
        link_bandwidth: 300e9,
    },
];

impl FromStr for Hardware {
    type Err = String;

    /// Parses `8xH100-80GB`; without a count it is one device.
    fn from_str(text: &str) -> Result<Self, String> {
        let (devices, name) = text.split_once('x').unwrap_or(("1", text));
        let card = CARDS.iter().find(|card| card.name.eq_ignore_ascii_case(name));
        match (devices.parse::<usize>(), card) {
            (Ok(devices @ 1..=1024), Some(card)) => Ok(Self { devices, card: *card }),
            _ => {
                let names = CARDS.map(|card| card.name).join(", ");
                Err(format!("expected a count and one of {names}, such as 8xH100-80GB"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_a_count_of_known_devices() {
        let parsed = "8xh200".parse::<Hardware>().unwrap();
        assert_eq!((parsed.devices, parsed.card.name), (8, "H200"));
        assert_eq!("A100-80GB".parse::<Hardware>().unwrap().devices, 1);
        for wrong in ["8xB300", "0xH200", "x", "H200x8", ""] {
            assert!(wrong.parse::<Hardware>().is_err(), "{wrong}");
        }
    }
}

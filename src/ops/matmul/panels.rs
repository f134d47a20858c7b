//! Packed weights: panels of 32 outputs, the outputs' words of the same inputs side by side.
//!
//! Of a word's inputs the first is in its lowest bits. A panel of F32 weights has a word for each
//! input, of BF16 weights for two, of INT8 weights for four.

use rayon::prelude::*;

use super::quads::GROUP;
use super::rows::{nearest, round_pair};
use super::tile::PANEL;
use crate::ops::numerics::Held;

/// All panels of a weight.
#[derive(Debug)]
pub(super) struct Panels {
    pub(super) held: Held,
    /// Panel by panel, word by word, 32 outputs.
    words: Vec<u32>,
    /// Panel by panel, group by group, 32 outputs; INT8 only.
    scales: Vec<f32>,
    /// Words of an output.
    depth: usize,
    /// Groups of an output.
    groups: usize,
}

impl Panels {
    /// Packs `count` panels; `fill(column, row)` writes the inputs of one of their outputs.
    pub(super) fn pack(
        count: usize,
        inputs: usize,
        held: Held,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let (depth, groups) = match held {
            Held::F32 => (inputs, 0),
            Held::Bf16 => (inputs.div_ceil(2), 0),
            Held::Int8 => (inputs.div_ceil(4), inputs.div_ceil(GROUP)),
        };
        let mut words = vec![0u32; count * PANEL * depth];
        let mut scales = vec![0.0f32; count * PANEL * groups];
        let pack = |rows: &mut Vec<f32>, panel: usize, words: &mut [u32], scales: &mut [f32]| {
            rows.resize(PANEL * inputs, 0.0);
            for (j, row) in rows.chunks_mut(inputs).enumerate() {
                fill(panel * PANEL + j, row);
            }
            for (j, row) in rows.chunks(inputs).enumerate() {
                match held {
                    Held::F32 => pack_singles(row, j, words),
                    Held::Bf16 => pack_halves(row, j, words),
                    Held::Int8 => pack_quads(row, j, words, scales),
                }
            }
        };
        let word_chunks = words.par_chunks_mut((PANEL * depth).max(1));
        if groups == 0 {
            word_chunks
                .enumerate()
                .for_each_init(Vec::new, |rows, (panel, words)| pack(rows, panel, words, &mut []));
        } else {
            word_chunks
                .zip(scales.par_chunks_mut(PANEL * groups))
                .enumerate()
                .for_each_init(Vec::new, |rows, (panel, (words, scales))| {
                    pack(rows, panel, words, scales)
                });
        }
        Self { held, words, scales, depth, groups }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        (self.words.len() + self.scales.len()) * 4
    }

    /// Words of one panel.
    pub(super) fn panel_words(&self) -> usize {
        PANEL * self.depth
    }

    /// Where a panel's words and scales begin.
    pub(super) fn panel(&self, panel: usize) -> (*const u32, *const f32) {
        let words = self.words[panel * self.panel_words()..].as_ptr();
        (words, self.scales[panel * PANEL * self.groups..].as_ptr())
    }
}

fn pack_singles(row: &[f32], j: usize, words: &mut [u32]) {
    for (x, word) in row.iter().zip(words[j..].iter_mut().step_by(PANEL)) {
        *word = x.to_bits();
    }
}

fn pack_halves(row: &[f32], j: usize, words: &mut [u32]) {
    for (pair, word) in row.chunks(2).zip(words[j..].iter_mut().step_by(PANEL)) {
        *word = round_pair(pair);
    }
}

/// Symmetric, each group of inputs with the scale that its largest weight needs.
fn pack_quads(row: &[f32], j: usize, words: &mut [u32], scales: &mut [f32]) {
    for (g, group) in row.chunks(GROUP).enumerate() {
        let largest = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        scales[g * PANEL + j] = largest / 127.0;
        let quads = words[g * GROUP / 4 * PANEL + j..].iter_mut().step_by(PANEL);
        for (quad, word) in group.chunks(4).zip(quads) {
            let byte = |i: usize| {
                let value = quad.get(i).map_or(0, |x| nearest(x * inverse));
                (value as u8) ^ 0x80
            };
            *word = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
        }
    }
}

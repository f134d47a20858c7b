//! A step as every layer's attention sees it: where its tokens stand and where their latents lie.
//!
//! The CPU takes it as it is; for a device it is uploaded once a step. Prompts are cut into *tiles*: neighbouring queries and the
//! piece of positions that they attend to. Pieces end at fixed positions, so that a token's sums run in
//! one order whatever else is in the step.

use candle_core::{Device, Result, Tensor};

use super::accelerator::{DeviceMetadata, GeneratedTables, PromptTables, TILE_QUERIES};
use super::latent::BLOCK_TOKENS;
use super::rotation::Rotation;
use super::shapes::{Form, Span};

/// Positions of a piece.
const PIECE: usize = 2048;
/// Positions whose keys and values are expanded at a time on a device.
const CALL_POSITIONS: usize = 2 * PIECE;

/// What attention needs to know of a step.
pub struct AttentionMetadata<'a> {
    pub(super) rotation: Rotation,
    pub(super) slots: &'a [u32],
    pub(super) spans: &'a [Span],
    /// None: the step is computed on the CPU.
    pub(super) on_device: Option<DeviceMetadata>,
}

impl<'a> AttentionMetadata<'a> {
    /// Puts together what there is to know of a step of at least one token, where `device` has it at hand.
    ///
    /// Spans have rows of their own, and each token a slot of its own: whoever schedules sees to that.
    pub fn new(
        device: &Device,
        rotation: Rotation,
        slots: &'a [u32],
        spans: &'a [Span],
    ) -> Result<Self> {
        let on_device = match device.is_cpu() {
            true => None,
            false => Some(DeviceMetadata::new(device, &rotation, slots, spans)?),
        };
        Ok(Self { rotation, slots, spans, on_device })
    }
}

impl DeviceMetadata {
    fn new(device: &Device, rotation: &Rotation, slots: &[u32], spans: &[Span]) -> Result<Self> {
        let (cos, sin) = rotation.on(device)?;
        let generated = generated(spans);
        let order = match generated.rows.is_empty() || generated.rows.len() == slots.len() {
            true => None,
            false => {
                let mut order: Vec<u32> = (0..slots.len() as u32).collect();
                for (n, &row) in generated.rows.iter().enumerate() {
                    order[row as usize] = (slots.len() + n) as u32;
                }
                Some(vector(order, device)?)
            }
        };
        let upload = |call: Call| {
            let tiles = (call.tiles.len(), 6);
            let flat = call.tiles.into_iter().flatten().collect();
            Ok(PromptTables {
                slots: vector(call.slots, device)?,
                tiles: Tensor::from_vec(flat, tiles, device)?,
            })
        };
        Ok(Self {
            cos,
            sin,
            slots: Tensor::from_slice(slots, slots.len(), device)?,
            generated: generated.upload(device)?,
            prompts: prompts(spans).into_iter().map(upload).collect::<Result<_>>()?,
            order,
        })
    }
}

fn vector(values: Vec<u32>, device: &Device) -> Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, device)
}

#[derive(Default)]
struct Generated {
    rows: Vec<u32>,
    tokens: Vec<[u32; 2]>,
    blocks: Vec<u32>,
}

impl Generated {
    fn upload(self, device: &Device) -> Result<Option<GeneratedTables>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let longest = self.tokens.iter().map(|token| token[0]).max().unwrap_or(0) as usize;
        let count = self.tokens.len();
        let tokens = self.tokens.into_iter().flatten().collect();
        Ok(Some(GeneratedTables {
            rows: vector(self.rows, device)?,
            tokens: Tensor::from_vec(tokens, (count, 2), device)?,
            blocks: vector(self.blocks, device)?,
            longest,
        }))
    }
}

fn generated(spans: &[Span]) -> Generated {
    let mut all = Generated::default();
    for span in spans.iter().filter(|span| span.form == Form::Generated) {
        let table = all.blocks.len() as u32;
        all.blocks.extend(span.blocks.iter());
        for i in 0..span.count {
            all.rows.push((span.first_row + i) as u32);
            all.tokens.push([(span.first_position + i + 1) as u32, table]);
        }
    }
    all
}

/// The work of one expansion of keys and values.
#[derive(Default)]
struct Call {
    slots: Vec<u32>,
    tiles: Vec<[u32; 6]>,
}

/// Cuts the prompts of a step into calls: all pieces of a span in their order, as many together as fit.
fn prompts(spans: &[Span]) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for span in spans.iter().filter(|span| span.form == Form::Prompt) {
        let end = span.first_position + span.count;
        for start in (0..end).step_by(PIECE) {
            let positions = PIECE.min(end - start);
            // Pieces of one span follow one another: the next one joins what this one gives.
            let full = |call: &Call| start > 0 || call.slots.len() + positions > CALL_POSITIONS;
            if calls.last().is_none_or(full) {
                calls.push(Call::default());
            }
            let call = calls.last_mut().expect("one was pushed");
            let first_row = call.slots.len();
            let slot = |position: usize| {
                let block = span.blocks[position / BLOCK_TOKENS] as usize;
                (block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32
            };
            call.slots.extend((start..start + positions).map(slot));
            for first in (0..span.count).step_by(TILE_QUERIES) {
                let queries = TILE_QUERIES.min(span.count - first);
                if span.first_position + first + queries > start {
                    let place = [span.first_row + first, queries, span.first_position + first];
                    let piece = [start, positions, first_row];
                    let tile = [place[0], place[1], place[2], piece[0], piece[1], piece[2]];
                    call.tiles.push(tile.map(|number| number as u32));
                }
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first_row: usize, count: usize, first_position: usize, form: Form) -> Span {
        let end = first_position + count;
        // Blocks of different spans are different, and none lies at its own position.
        let blocks = (0..end.div_ceil(BLOCK_TOKENS)).map(|b| (1000 * first_row + 7 + b) as u32);
        Span { first_row, count, first_position, form, blocks: blocks.collect() }
    }

    #[test]
    fn tiles_show_each_prompt_token_its_positions_once_and_in_order() {
        let spans = [
            span(0, 70, 0, Form::Prompt),
            span(70, 3, 9, Form::Generated),
            span(73, 130, 5000, Form::Prompt),
            span(203, 1, PIECE, Form::Prompt),
        ];
        let mut seen = vec![Vec::<u32>::new(); 204];
        for call in prompts(&spans) {
            assert!(call.slots.len() <= CALL_POSITIONS);
            for tile in &call.tiles {
                let [row, queries, position, start, count, first] = tile.map(|n| n as usize);
                assert!((1..=TILE_QUERIES).contains(&queries));
                for i in 0..queries {
                    let visible = (position + i + 1).saturating_sub(start).min(count);
                    seen[row + i].extend(&call.slots[first..first + visible]);
                }
            }
        }
        for span in spans.iter().filter(|span| span.form == Form::Prompt) {
            for i in 0..span.count {
                let slot =
                    |p: usize| span.blocks[p / BLOCK_TOKENS] * 16 + (p % BLOCK_TOKENS) as u32;
                let expected: Vec<u32> = (0..=span.first_position + i).map(slot).collect();
                assert_eq!(seen[span.first_row + i], expected, "row {}", span.first_row + i);
            }
        }
        assert!(seen[70..73].iter().all(Vec::is_empty));
    }

    #[test]
    fn generated_tokens_see_up_to_their_own_position() {
        let spans = [span(0, 2, 0, Form::Prompt), span(2, 2, 30, Form::Generated)];
        let tables = generated(&spans);
        assert_eq!(tables.rows, [2, 3]);
        assert_eq!(tables.tokens, [[31, 0], [32, 0]]);
        assert_eq!(tables.blocks[..], spans[1].blocks[..]);
    }
}

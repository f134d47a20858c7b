//! The naive peer: the rows of a JSONL file, one after another, with candle-transformers' DeepSeek-V2 in F32;
//! greedy, the end of sequence ignored. A row has `prompt_token_ids` and `max_tokens`.
//!
//! ```sh
//! cargo run --release --example candle_transformers -- MODEL_FOLDER ROWS.jsonl [IDS.txt]
//! ```
//!
//! Prints tokens per second; IDS.txt gets each row's token ids on a line.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    prompt_token_ids: Vec<u32>,
    max_tokens: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(rows)) = (arguments.next(), arguments.next()) else {
        return Err("expected a model's folder and a JSONL file".into());
    };
    let ids = arguments.next();
    let config: DeepSeekV2Config =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let weights = [folder.join("model.safetensors")];
    // SAFETY: the file is not written while this program runs.
    let weights =
        unsafe { VarBuilder::from_mmaped_safetensors(&weights, DType::F32, &Device::Cpu)? };
    let mut model = DeepSeekV2::new(&config, weights)?;
    let lines = BufReader::new(std::fs::File::open(rows)?).lines();
    let rows: Vec<Row> = lines
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let begin = Instant::now();
    let completions: Vec<Vec<u32>> =
        rows.iter().map(|row| generate(&mut model, row)).collect::<Result<_, _>>()?;
    let seconds = begin.elapsed().as_secs_f64();
    let tokens: usize = completions.iter().map(Vec::len).sum();
    let per_second = tokens as f64 / seconds;
    writeln!(std::io::stdout(), "{tokens} tokens in {seconds:.2} s, {per_second:.1} a second")?;
    if let Some(path) = ids {
        let line =
            |ids: &Vec<u32>| ids.iter().map(|id| format!("{id} ")).collect::<String>() + "\n";
        std::fs::write(path, completions.iter().map(line).collect::<String>())?;
    }
    Ok(())
}

fn generate(model: &mut DeepSeekV2, row: &Row) -> candle_core::Result<Vec<u32>> {
    model.clear_kv_cache();
    let mut completion = Vec::with_capacity(row.max_tokens);
    let mut input = row.prompt_token_ids.clone();
    let mut position = 0;
    while completion.len() < row.max_tokens {
        let tokens = Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let next = model.forward(&tokens, position)?.get(0)?.argmax(0)?.to_scalar::<u32>()?;
        position += input.len();
        completion.push(next);
        input = vec![next];
    }
    Ok(completion)
}

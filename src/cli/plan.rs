//! `nightshift plan`: what a job would take, rank by rank, and how fast hardware would be with it.

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::exit::Exit;
use super::{JobArgs, terminal};
use crate::job::{BatchSpec, Job};
use crate::ops::{DeviceKind, Held};
use crate::parallel::Topology;
use crate::pipeline::RunError;
use crate::pipeline::plan::{LayoutPlan, PlanRequest, PlannedStep, plan as lay_out};
use crate::sizing::Hardware;
use crate::storage::Storage;

/// Shows how a model is laid out over ranks and what each of them holds, from config.json alone. With
/// --hardware also how many tokens a second it could decode there: a roofline, not a measurement.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The job file.
    #[arg(required_unless_present = "model")]
    job: Option<PathBuf>,
    #[command(flatten)]
    overrides: JobArgs,
    /// Plans for this model instead: a folder or URL, or a config.json.
    #[arg(long, value_name = "PATH")]
    model: Option<String>,
    /// Plans for these devices instead of this machine: 8xH100-80GB, 8xH200, 8xA100-80GB.
    #[arg(long, value_name = "DEVICES")]
    hardware: Option<Hardware>,
    /// Pipeline stages, instead of the job's.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    stages: Option<u16>,
    /// Expert-parallel ranks of each stage, instead of the job's.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranks: Option<u16>,
    /// Mean tokens of a running sequence, prompt and completion.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    context: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(args: PlanArgs) -> Exit {
    let request = match request(&args) {
        Ok(request) => request,
        Err(exit) => return exit,
    };
    let planned =
        Storage::new().map_err(RunError::from).and_then(|storage| lay_out(&storage, request));
    match planned {
        Err(error) => {
            terminal::report(&error, error.hint());
            Exit::Error
        }
        Ok(plan) => {
            let text = match args.json {
                true => serde_json::to_string_pretty(&plan).expect("a plan has text keys only"),
                false => terminal::escaped(described(&plan)),
            };
            terminal::data(&text);
            Exit::Ok
        }
    }
}

fn request(args: &PlanArgs) -> Result<PlanRequest, Exit> {
    let mut request = match &args.job {
        Some(path) => {
            let job = Job::load(path, &args.overrides.overrides()).map_err(|error| {
                terminal::report(&error, error.hint());
                Exit::Usage
            })?;
            PlanRequest::of_job(&job)
        }
        None => PlanRequest {
            model_path: String::new(),
            base: PathBuf::from("."),
            device: DeviceKind::Cpu,
            numerics: Held::F32.into(),
            topology: Topology::SINGLE,
            batch: BatchSpec::default(),
            hardware: None,
            context: args.context,
        },
    };
    if let Some(model) = &args.model {
        (request.model_path, request.base) = (model.clone(), PathBuf::from("."));
    }
    let Topology { stages, ranks_per_stage } = request.topology;
    request.topology = Topology {
        stages: args.stages.map_or(stages, usize::from),
        ranks_per_stage: args.ranks.map_or(ranks_per_stage, usize::from),
    };
    (request.hardware, request.context) = (args.hardware, args.context);
    Ok(request)
}

fn described(plan: &LayoutPlan) -> String {
    let mut text = String::new();
    let LayoutPlan { model, parameters, active_parameters, layers, mixture_layers, .. } = plan;
    let _ = writeln!(
        text,
        "model    {model}: {} parameters, {} of them at work on a token; {layers} layers, {mixture_layers} with {} experts",
        grouped(*parameters),
        grouped(*active_parameters),
        plan.experts,
    );
    let place = match (&plan.hardware, plan.memory_bytes) {
        (Some(hardware), _) => format!("{} × {}", hardware.devices, hardware.card.name),
        (None, Some(bytes)) => format!("this machine ({} free)", gigabytes(bytes)),
        (None, None) => "this machine".to_owned(),
    };
    let _ = writeln!(
        text,
        "layout   {} on {place}, weights in {} bits",
        Topology { stages: plan.stages, ranks_per_stage: plan.ranks_per_stage },
        plan.weight_bits
    );
    let room = plan.cache_tokens.map(|tokens| format!("; room for {} tokens", grouped(tokens)));
    let _ = writeln!(
        text,
        "cache    {} B a token{}",
        grouped(plan.cache_bytes_per_token),
        room.unwrap_or_default()
    );
    text += &ranks(plan);
    text += &others(plan);
    text += &decode(plan);
    text.trim_end().to_owned()
}

fn ranks(plan: &LayoutPlan) -> String {
    let mut text = format!(
        "\n{:>5} {:>5}  {:>9} {:>9} {:>10} {:>10} {:>14}\n",
        "stage", "rank", "layers", "experts", "weights", "workspace", "cache a token"
    );
    for rank in &plan.ranks {
        let _ = writeln!(
            text,
            "{:>5} {:>5}  {:>9} {:>9} {:>10} {:>10} {:>12} B",
            rank.stage,
            rank.rank,
            span(&rank.layers),
            span(&rank.experts),
            gigabytes(rank.weight_bytes),
            gigabytes(rank.workspace_bytes),
            grouped(rank.cache_bytes_per_token)
        );
    }
    text
}

fn others(plan: &LayoutPlan) -> String {
    let mut text = String::new();
    for other in &plan.others {
        let topology = Topology { stages: other.stages, ranks_per_stage: other.ranks_per_stage };
        let room = other.cache_tokens.map_or_else(
            || "does not fit".to_owned(),
            |tokens| format!("room for {} tokens", grouped(tokens)),
        );
        let _ = writeln!(
            text,
            "{:<20} {} of weights on the heaviest rank, {room}",
            topology.to_string(),
            gigabytes(other.weight_bytes)
        );
    }
    if text.is_empty() { text } else { format!("\nother layouts\n{text}") }
}

fn decode(plan: &LayoutPlan) -> String {
    if plan.decode.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\ndecoding at a mean context of {} tokens, milliseconds of a step (a roofline)\n{:>9} {:>8} {:>11} {:>9} {:>8} {:>7} {:>8} {:>6} {:>9}\n",
        grouped(plan.context as u64),
        "sequences",
        "step",
        "projections",
        "attention",
        "experts",
        "shared",
        "exchange",
        "gaps",
        "tokens/s"
    );
    let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
    for PlannedStep { time, cache_fits } in &plan.decode {
        let _ = writeln!(
            text,
            "{:>9} {:>8} {:>11} {:>9} {:>8} {:>7} {:>8} {:>6} {:>9}{}",
            grouped(time.sequences as u64),
            ms(time.total),
            ms(time.projections),
            ms(time.attention),
            ms(time.experts),
            ms(time.shared),
            ms(time.communication),
            ms(time.gaps),
            grouped(time.tokens_per_second as u64),
            if *cache_fits { "" } else { " *" }
        );
    }
    text + "* more than the cache holds\n"
}

fn span(range: &Range<usize>) -> String {
    match range.len() {
        0 => "–".into(),
        1 => range.start.to_string(),
        _ => format!("{}–{}", range.start, range.end - 1),
    }
}

fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_threes() {
        assert_eq!(
            [0, 999, 1000, 235_741_434_880].map(grouped),
            ["0", "999", "1,000", "235,741,434,880"]
        );
    }
}

//! The heat map of a grid, as SVG: one square for each pair of values, its colour and number the mean.

use std::fmt::Write;

use super::Cell;
use super::report::natural;

const CELL: [usize; 2] = [58, 30];
/// Room for labels: left and right, above and below.
const MARGIN: [usize; 4] = [96, 24, 44, 56];

/// Draws the cells; `columns` are the names of what goes across and down.
pub fn heat_map(cells: &[Cell], columns: [&str; 2], title: &str) -> String {
    let distinct = |of: fn(&Cell) -> &String| {
        let mut values: Vec<&String> = cells.iter().map(of).collect();
        values.sort_by(|a, b| natural(a, b));
        values.dedup();
        values
    };
    let (across, down) = (distinct(|cell| &cell.x), distinct(|cell| &cell.y));
    let [left, right, top, bottom] = MARGIN;
    let (width, height) =
        (left + CELL[0] * across.len() + right, top + CELL[1] * down.len() + bottom);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" text-anchor="middle">
<rect width="{width}" height="{height}" fill="#ffffff"/>
"##
    );
    let mut text = |x: usize, y: usize, extra: &str, words: &str| {
        let _ = writeln!(svg, r#"<text x="{x}" y="{y}"{extra}>{}</text>"#, escaped(words));
    };
    text(width / 2, 22, r#" font-size="14""#, title);
    text(left + CELL[0] * across.len() / 2, height - 14, "", columns[0]);
    let middle = top + CELL[1] * down.len() / 2;
    text(20, middle, &format!(r#" transform="rotate(-90 20 {middle})""#), columns[1]);
    for (index, value) in across.iter().enumerate() {
        text(left + CELL[0] * index + CELL[0] / 2, height - bottom + 18, "", value);
    }
    for (index, value) in down.iter().enumerate() {
        let y = top + CELL[1] * index + CELL[1] / 2 + 4;
        text(left - 8, y, r#" text-anchor="end""#, value);
    }
    for cell in cells {
        let place = |values: &[&String], value: &String| values.iter().position(|v| *v == value);
        let (Some(column), Some(row)) = (place(&across, &cell.x), place(&down, &cell.y)) else {
            continue;
        };
        let (x, y) = (left + CELL[0] * column, top + CELL[1] * row);
        let value = cell.estimate.value;
        let _ = writeln!(
            svg,
            r##"<rect x="{x}" y="{y}" width="{}" height="{}" fill="{}" stroke="#ffffff"><title>{}</title></rect>"##,
            CELL[0],
            CELL[1],
            colour(value),
            escaped(&format!(
                "{} × {}: {:.1} % of {} rows",
                cell.x,
                cell.y,
                value * 100.0,
                cell.rows
            )),
        );
        let ink = if (0.25..0.75).contains(&value) { "#222222" } else { "#ffffff" };
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{}" fill="{ink}">{:.0}</text>"#,
            x + CELL[0] / 2,
            y + CELL[1] / 2 + 4,
            value * 100.0
        );
    }
    svg + "</svg>\n"
}

/// From red over near-white to blue, which colour-blind readers tell apart.
fn colour(value: f64) -> String {
    const ENDS: [[f64; 3]; 3] = [[178.0, 24.0, 43.0], [247.0, 247.0, 247.0], [33.0, 102.0, 172.0]];
    let value = value.clamp(0.0, 1.0) * 2.0;
    let (from, to, part) = match value < 1.0 {
        true => (ENDS[0], ENDS[1], value),
        false => (ENDS[1], ENDS[2], value - 1.0),
    };
    let mixed = |index: usize| (from[index] + (to[index] - from[index]) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mixed(0), mixed(1), mixed(2))
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::statistics::Estimate;

    fn cell(x: &str, y: &str, value: f64) -> Cell {
        let estimate = Estimate { value, low: 0.0, high: 1.0 };
        Cell { x: x.into(), y: y.into(), rows: 3, estimate }
    }

    #[test]
    fn every_cell_has_its_square_in_the_order_of_numbers() {
        let cells = [cell("2048", "0", 1.0), cell("512", "0", 0.5), cell("512", "100", 0.0)];
        let svg = heat_map(&cells, ["context_tokens", "depth"], "recall <1>");
        // A background, three squares.
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(svg.contains("recall &lt;1&gt;") && svg.contains(">context_tokens<"), "{svg}");
        let x_of = |label: &str| svg.find(&format!(">{label}</text>")).unwrap();
        assert!(x_of("512") < x_of("2048"), "{svg}");
        for (colour, value) in [("#2166ac", "100"), ("#f7f7f7", "50"), ("#b2182b", "0")] {
            assert!(svg.contains(colour) && svg.contains(&format!(">{value}</text>")), "{svg}");
        }
        assert!(heat_map(&[], ["a", "b"], "none").ends_with("</svg>\n"));
    }
}

//! Line plots as SVG. Pure: from numbers to text.

use plotters::prelude::*;

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below it.
    pub x: String,
    /// Beside it.
    pub y: String,
    /// Names and points.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// Pixels.
const SIZE: (u32, u32) = (800, 480);
/// Ticks of an axis.
const MOST_TICKS: usize = 11;
/// Of the space around the points.
const MARGIN: f64 = 0.05;

/// From the least to the most, with some space, and never empty.
fn range(values: impl Iterator<Item = f64>, from_zero: bool) -> std::ops::Range<f64> {
    let (mut least, mut most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
    if !(least.is_finite() && most.is_finite()) {
        return 0.0..1.0;
    }
    if from_zero {
        (least, most) = (least.min(0.0), most.max(0.0));
    }
    let space = ((most - least) * MARGIN).max(f64::MIN_POSITIVE);
    if most - least < f64::EPSILON * most.abs().max(1.0) {
        return least - 0.5..most + 0.5;
    }
    (if from_zero && least == 0.0 { 0.0 } else { least - space })..most + space
}

/// How many ticks an axis has at most. Between whole numbers that lie close together there are none, as nothing can be there.
fn ticks(values: impl Iterator<Item = f64> + Clone) -> usize {
    let whole = values.clone().all(|value| value.fract() == 0.0);
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
    let between = most - least + 1.0;
    if whole && (1.0..=MOST_TICKS as f64).contains(&between) { between as usize } else { MOST_TICKS }
}

/// A tick's number with as many places as it needs; a step of an axis has three at most that matter.
fn label(value: f64) -> String {
    if value.abs() >= 1e7 || value != 0.0 && value.abs() < 1e-4 {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.6}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

/// Draws it.
///
/// # Errors
/// What the drawing says, as text.
pub fn svg(plot: &Plot) -> Result<String, String> {
    let mut out = String::new();
    {
        let points = || plot.lines.iter().flat_map(|(_, points)| points.iter().copied());
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        draw(&area, plot, range(points().map(|p| p.0), false), range(points().map(|p| p.1), true))
            .map_err(|error| error.to_string())?;
    }
    Ok(out)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(
    area: &Area<'a>,
    plot: &Plot,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Result<(), DrawError<'a>> {
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(&plot.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    let points = || plot.lines.iter().flat_map(|(_, points)| points);
    chart
        .configure_mesh()
        .x_desc(&plot.x)
        .y_desc(&plot.y)
        .x_labels(ticks(points().map(|point| point.0)))
        .y_labels(ticks(points().map(|point| point.1)))
        .x_label_formatter(&|value| label(*value))
        .y_label_formatter(&|value| label(*value))
        .light_line_style(WHITE)
        .draw()?;
    for (index, (name, points)) in plot.lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        if !name.is_empty() {
            line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    if plot.lines.iter().any(|(name, _)| !name.is_empty()) {
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_its_lines_and_their_names() {
        let plot = Plot {
            title: "speed & <more>".into(),
            x: "vcpus".into(),
            y: "seconds".into(),
            lines: vec![("fair".into(), vec![(1.0, 2.0), (2.0, 1.0)]), ("rr".into(), vec![(1.0, 2.5)])],
        };
        let svg = svg(&plot).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        for text in ["fair", "rr", "seconds", "speed &amp; &lt;more&gt;"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    /// The numbers beside the axes.
    fn labels(points: Vec<(f64, f64)>) -> Vec<String> {
        let words = || ["", "x", "y"].map(str::to_owned);
        let [title, x, y] = words();
        let svg = svg(&Plot { title, x, y, lines: vec![(String::new(), points)] }).unwrap();
        let texts = svg.split("</text>").filter_map(|part| part.rsplit('>').next());
        texts.map(str::trim).filter(|text| text.parse::<f64>().is_ok()).map(str::to_owned).collect()
    }

    #[test]
    fn whole_numbers_have_whole_ticks() {
        for most in 2..=11_u32 {
            let points = (1..=most).map(|n| (f64::from(n), f64::from(n % 3))).collect();
            let labels = labels(points);
            assert!(labels.iter().all(|label| !label.contains('.')), "{labels:?}");
            assert!(labels.iter().any(|label| *label == "2"), "{labels:?}");
        }
        let fractions = labels(vec![(0.0, 0.0), (0.5, 0.25)]);
        assert!(fractions.iter().any(|label| label == "0.1"), "{fractions:?}");
    }

    #[test]
    fn anything_finite_can_be_drawn() {
        for points in [vec![], vec![(0.0, 0.0)], vec![(5.0, 5.0), (5.0, 5.0)], vec![(-1e300, 1e300), (1e300, -1e300)]] {
            let plot =
                Plot { title: String::new(), x: "x".into(), y: "y".into(), lines: vec![(String::new(), points)] };
            svg(&plot).unwrap();
        }
    }
}

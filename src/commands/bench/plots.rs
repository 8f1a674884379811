//! The plots of a report, as SVG that is readable on light and on dark pages.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::events::{Ids, LONG, SHORT};
use super::measure::PERCENTILES;
use super::results::{Measured, Results, number};
use super::workloads::{Appends, BATCHES, CONCURRENCIES, DISK_APPENDED, DISK_FILLED, Workload};

/// A plot and the name of its file.
pub(super) struct Plot {
    pub(super) file: String,
    pub(super) title: String,
    /// For a page that sets the text colour.
    pub(super) svg: String,
}

impl Plot {
    /// For a separate file with its own colours.
    pub(super) fn alone(&self) -> String {
        const STYLE: &str = "<style>:root{color:#222;background:#fff}\
            @media(prefers-color-scheme:dark){:root{color:#ddd;background:#181a1b}}</style>\n";
        let end_of_tag = self.svg.find('>').map_or(0, |at| at + 1);
        let (tag, rest) = self.svg.split_at(end_of_tag);
        format!("{tag}\n{STYLE}{}", rest.trim_start())
    }
}

type Error = DrawingAreaErrorKind<std::io::Error>;

const WIDTH: u32 = 720;
/// The height without title and legend.
const HEIGHT: u32 = 360;
/// Stands for the text colour of the page; no other colour of a plot is equal to it.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_IN_SVG: &str = "#010203";
/// In units of plotters; the displayed size is four fifths of it.
const TEXT_SIZE: i32 = 17;
const BAR_TEXT_SIZE: i32 = 14;
/// The line height of the legend, its position, and the width of a sample of a series.
const LINE: i32 = 24;
const LEFT: i32 = 20;
const SAMPLE: i32 = 26;
/// Bright enough for a dark page, dark enough for a light one, and distinguishable for colour-blind readers.
const COLORS: [RGBColor; 6] = [
    RGBColor(0x2f, 0x81, 0xd6),
    RGBColor(0xe0, 0x7b, 0x1f),
    RGBColor(0x1f, 0xa0, 0x7a),
    RGBColor(0xc0, 0x5c, 0xb4),
    RGBColor(0x8a, 0x8f, 0x1c),
    RGBColor(0xd6, 0x4a, 0x4a),
];

/// All plots that have data.
pub(super) fn all(results: &Results) -> Result<Vec<Plot>, Error> {
    let mut plots = Vec::new();
    let appends = |appends: Appends| Workload::Append(appends).name();

    let series = results.stores.iter().enumerate().map(|(at, store)| {
        let names = CONCURRENCIES.map(|appenders| appends(Appends::concurrent(appenders)));
        Series::new(at, store.title.clone(), values(store, &names))
    });
    plots.push(lines(
        "append-by-concurrency",
        "Durable appends by the number of appenders, 1 event at a time each",
        "events/s",
        &CONCURRENCIES,
        series.collect(),
    )?);

    let mut series = Vec::new();
    for (at, store) in results.stores.iter().enumerate() {
        for (ids, note) in [(Ids::TimeOrdered, ""), (Ids::Random, ", random ids")] {
            let names = BATCHES.map(|batch| appends(Appends::batches(batch, ids)));
            let shape = if ids == Ids::Random { Shape::Dashes } else { Shape::Line };
            series.push(Series::new(at, format!("{}{note}", store.title), values(store, &names)).shaped(shape));
        }
    }
    let title = "Durable appends by the number of events in a batch, 1 appender";
    plots.push(lines("append-by-batch-size", title, "events/s", &BATCHES, series)?);

    for appenders in CONCURRENCIES {
        let name = appends(Appends::concurrent(appenders));
        let title = match appenders {
            1 => "Time of a durable append, 1 appender".to_owned(),
            appenders => format!("Time of a durable append, {appenders} appenders"),
        };
        plots.push(percentiles(results, &format!("append-latency-{appenders}"), &title, &name)?);
    }
    plots.push(percentiles(
        results,
        "wake-latency",
        "Time from an answered append to its follower",
        &Workload::Wake.name(),
    )?);

    let reads = [
        (Workload::ScanPages, "scan by page".to_owned()),
        (Workload::ScanStream, "scan by event".to_owned()),
        (Workload::Aggregate(LONG), format!("aggregate of {LONG}")),
        (Workload::Aggregate(SHORT), format!("aggregate of {SHORT}")),
        (Workload::Get, "by id".to_owned()),
    ];
    let groups = reads.map(|(workload, label)| (workload.name(), label));
    plots.push(bars(results, "reads", "Reads, one after the other, of what is in memory", "events/s", &groups)?);

    let groups = [(DISK_FILLED.0, "after filling"), (DISK_APPENDED.0, "after all appends")];
    let groups = groups.map(|(name, label)| (name.to_owned(), label.to_owned()));
    let title = format!("Bytes on disk for each event with {} bytes of data", results.settings.data_bytes);
    plots.push(bars(results, "disk", &title, "bytes/event", &groups)?);
    plots.push(bars(
        results,
        "open",
        "Opening a store that was closed in good order, median",
        "µs",
        &[(Workload::Open.name(), format!("{} events", results.settings.events))],
    )?);
    Ok(plots.into_iter().flatten().collect())
}

/// The values of a store under these names.
fn values(store: &Measured, names: &[String]) -> Vec<Option<f64>> {
    names.iter().map(|name| store.get(name).map(|measurement| measurement.value)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Line,
    Dashes,
    Bar,
}

/// The plotted data of one store: a value for each position on the axis.
struct Series {
    title: String,
    store: usize,
    shape: Shape,
    values: Vec<Option<f64>>,
}

impl Series {
    fn new(store: usize, title: String, values: Vec<Option<f64>>) -> Self {
        Series { title, store, shape: Shape::Line, values }
    }

    fn shaped(self, shape: Shape) -> Self {
        Series { shape, ..self }
    }

    fn color(&self) -> RGBColor {
        COLORS[self.store % COLORS.len()]
    }

    /// The existing values with their positions. A logarithmic axis cannot show zero.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
        let points = self.values.iter().enumerate();
        points.filter_map(|(place, value)| Some((place as f64, value.filter(|value| *value > 0.0)?)))
    }
}

fn percentiles(results: &Results, file: &str, title: &str, name: &str) -> Result<Option<Plot>, Error> {
    let series = results.stores.iter().enumerate().filter_map(|(at, store)| {
        let latency = store.get(name)?.latency_us?;
        // Times near zero are drawn at the bottom: a logarithmic axis has no zero.
        Some(Series::new(at, store.title.clone(), latency.all().map(|time| Some(time.max(0.1))).to_vec()))
    });
    lines(file, title, "µs", &PERCENTILES.map(|(_, name)| name), series.collect())
}

/// A line plot over named positions, with a logarithmic axis. `None` if there is no data.
fn lines(
    file: &str,
    title: &str,
    unit: &str,
    places: &[impl Display],
    series: Vec<Series>,
) -> Result<Option<Plot>, Error> {
    let Some((least, greatest)) = range(&series) else { return Ok(None) };
    // Whole powers of ten, which have labels.
    let (bottom, mut top) = (10_f64.powf(least.log10().floor()), 10_f64.powf(greatest.log10().ceil()));
    if top <= bottom {
        top = bottom * 10.0;
    }
    draw(file, title, &series, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(85)
            .build_cartesian_2d(Places(places.iter().map(ToString::to_string).collect()), (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.2))
            .light_line_style(INK.mix(0.07))
            .label_style(text())
            .y_label_formatter(&|value| axis_number(*value))
            .y_desc(unit)
            .draw()?;
        for series in &series {
            let style = series.color().stroke_width(2);
            match series.shape {
                Shape::Dashes => chart.draw_series(DashedLineSeries::new(series.points(), 6, 4, style))?,
                Shape::Line | Shape::Bar => chart.draw_series(LineSeries::new(series.points(), style))?,
            };
            chart.draw_series(
                series.points().map(|point| {
                    EmptyElement::at(point) + Polygon::new(outline(series.store), series.color().filled())
                }),
            )?;
        }
        Ok(())
    })
    .map(Some)
}

/// A bar plot in groups, with one bar per store in each. `None` if there is no data.
fn bars(
    results: &Results,
    file: &str,
    title: &str,
    unit: &str,
    groups: &[(String, String)],
) -> Result<Option<Plot>, Error> {
    let names: Vec<_> = groups.iter().map(|(name, _)| name.clone()).collect();
    let series = results.stores.iter().enumerate();
    let series =
        series.map(|(at, store)| Series::new(at, store.title.clone(), values(store, &names)).shaped(Shape::Bar));
    let series: Vec<_> = series.filter(|series| series.values.iter().any(Option::is_some)).collect();
    let Some((_, greatest)) = range(&series) else { return Ok(None) };
    draw(file, title, &series, |area| {
        let mut chart =
            ChartBuilder::on(area).margin(10).x_label_area_size(30).y_label_area_size(85).build_cartesian_2d(
                Places(groups.iter().map(|(_, label)| label.clone()).collect()),
                0.0..greatest * 1.12,
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.2))
            .light_line_style(TRANSPARENT)
            .label_style(text())
            .y_label_formatter(&|value| axis_number(*value))
            .y_desc(unit)
            .draw()?;
        let width = 0.8 / series.len() as f64;
        for (at, series) in series.iter().enumerate() {
            let left = |place: f64| place - 0.4 + width * at as f64;
            chart.draw_series(series.points().map(|(place, value)| {
                let corners = [(left(place) + width * 0.05, 0.0), (left(place) + width * 0.95, value)];
                Rectangle::new(corners, series.color().filled())
            }))?;
            let above = text_of(BAR_TEXT_SIZE).pos(Pos::new(HPos::Center, VPos::Bottom));
            chart.draw_series(series.points().map(|(place, value)| {
                let middle = left(place) + width / 2.0;
                EmptyElement::at((middle, value)) + Text::new(bar_number(value), (0, -3), above.clone())
            }))?;
        }
        Ok(())
    })
    .map(Some)
}

/// An axis with named positions at 0, 1, 2, … and half a unit of room at both ends.
struct Places(Vec<String>);

impl Ranged for Places {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        begin + ((value + 0.5) / self.0.len() as f64 * f64::from(end - begin)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0.len()).map(|place| place as f64).collect()
    }

    fn range(&self) -> Range<f64> {
        -0.5..self.0.len() as f64 - 0.5
    }
}

impl ValueFormatter<f64> for Places {
    fn format(place: &f64) -> String {
        place.to_string()
    }

    fn format_ext(&self, place: &f64) -> String {
        self.0.get(place.round() as usize).cloned().unwrap_or_default()
    }
}

/// The smallest and the greatest value, if there are any.
fn range(series: &[Series]) -> Option<(f64, f64)> {
    let values = || series.iter().flat_map(Series::points).map(|(_, value)| value);
    Some((values().reduce(f64::min)?, values().reduce(f64::max)?)).filter(|(_, greatest)| *greatest > 0.0)
}

/// The shape of a store's points, in pixels around the point: an octagon, a triangle or a square.
fn outline(store: usize) -> &'static [(i32, i32)] {
    match store % 3 {
        0 => &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        1 => &[(0, -6), (6, 5), (-6, 5)],
        _ => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    }
}

fn text() -> TextStyle<'static> {
    text_of(TEXT_SIZE)
}

fn text_of(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// A number for an axis.
fn axis_number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", axis_number(value / 1e6)),
        value => {
            let text = number(value);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
    }
}

/// A number that is short enough for the label of a bar.
fn bar_number(value: f64) -> String {
    match value {
        value if (1e4..1e6).contains(&value) => format!("{} k", axis_number(value / 1e3)),
        value => axis_number(value),
    }
}

/// Draws a plot below its title and its legend.
fn draw(
    file: &str,
    title: &str,
    series: &[Series],
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Error>,
) -> Result<Plot, Error> {
    let legend = Legend::of(series);
    let head = LINE * (1 + legend.lines);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT + head.unsigned_abs())).into_drawing_area();
        let (above, below) = area.split_vertically(head);
        above.draw(&Text::new(title.to_owned(), (LEFT, 8), text()))?;
        legend.draw(&above, series)?;
        draw(&below)?;
        area.present()?;
    }
    Ok(Plot { file: format!("{file}.svg"), title: title.to_owned(), svg: svg.replace(INK_IN_SVG, "currentColor") })
}

/// The names of the series, above the plot, where there is always room.
struct Legend {
    places: Vec<(i32, i32)>,
    lines: i32,
}

impl Legend {
    /// As many side by side as fit.
    fn of(series: &[Series]) -> Self {
        let (mut x, mut line) = (LEFT, 1);
        let mut places = Vec::new();
        for series in series {
            // Estimated from the average width of a letter, with a margin.
            let width = SAMPLE + 30 + series.title.chars().count() as i32 * TEXT_SIZE / 2;
            if x > LEFT && x + width > WIDTH as i32 {
                (x, line) = (LEFT, line + 1);
            }
            places.push((x, line * LINE + LINE / 2));
            x += width;
        }
        Legend { places, lines: line }
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, series: &[Series]) -> Result<(), Error> {
        for (series, &(x, y)) in series.iter().zip(&self.places) {
            let (color, end) = (series.color(), x + SAMPLE);
            match series.shape {
                Shape::Bar => area.draw(&Rectangle::new([(x, y - 6), (end, y + 6)], color.filled()))?,
                Shape::Line => area.draw(&PathElement::new([(x, y), (end, y)], color.stroke_width(2)))?,
                Shape::Dashes => {
                    for x in [x, x + 10, x + 20] {
                        area.draw(&PathElement::new([(x, y), (x + 6, y)], color.stroke_width(2)))?;
                    }
                }
            }
            if series.shape != Shape::Bar {
                let middle = outline(series.store).iter().map(|(right, down)| (x + SAMPLE / 2 + right, y + down));
                area.draw(&Polygon::new(middle.collect::<Vec<_>>(), color.filled()))?;
            }
            let style = text().pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(series.title.clone(), (end + 8, y), style))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series::new(0, "lmdb:?a=<b>".to_owned(), values.iter().copied().map(Some).collect())
    }

    #[test]
    fn a_plot_takes_its_colours_from_the_page_or_brings_them() {
        let plot = lines("file", "A title", "events/s", &[1, 8], vec![series(&[10.0, 2000.0])]);
        let plot = plot.expect("drawn").expect("something to show");
        assert_eq!(plot.file, "file.svg");
        assert!(plot.svg.starts_with("<svg ") && plot.svg.trim_end().ends_with("</svg>"));
        for words in ["A title", "lmdb:?a=&lt;b&gt;", "currentColor", "1,000"] {
            assert!(plot.svg.contains(words), "{words:?} is not in:\n{}", plot.svg);
        }
        assert!(!plot.svg.contains(INK_IN_SVG) && !plot.svg.contains("<style>"));
        let alone = plot.alone();
        assert!(alone.starts_with("<svg ") && alone.contains("prefers-color-scheme:dark"));
        assert_eq!(alone.matches("<svg ").count(), 1);
    }

    #[test]
    fn nothing_to_show_is_no_plot() {
        assert!(lines("file", "A title", "µs", &[1, 8], vec![]).expect("drawn").is_none());
        let empty = Series::new(0, "memory:".to_owned(), vec![None, None]);
        assert!(lines("file", "A title", "µs", &[1, 8], vec![empty]).expect("drawn").is_none());
    }

    #[test]
    fn equal_and_tiny_values_have_an_axis() {
        for values in [&[100.0, 100.0][..], &[0.01, 0.01], &[1e-9, 1e9]] {
            assert!(lines("file", "A title", "µs", &[1, 8], vec![series(values)]).expect("drawn").is_some());
        }
    }

    #[test]
    fn numbers_on_an_axis_are_short() {
        let shown = [0.0, 0.1, 0.25, 10.0, 100.0, 215_394.0, 1e6, 2.5e6, 3_812_345.0].map(axis_number);
        assert_eq!(shown, ["0", "0.1", "0.25", "10", "100", "215,394", "1 M", "2.5 M", "3.81 M"]);
        assert_eq!(
            [680.0, 9_999.0, 12_000.0, 215_394.0, 1e6].map(bar_number),
            ["680", "9,999", "12 k", "215 k", "1 M"]
        );
    }
}

//! Every operation of every image of a chain fails, is cut short, is slow or hangs: its requests get the error, nothing
//! else changes, a failed flush stays failed, and afterwards everything works again.

use std::cell::RefCell;
use std::collections::BTreeMap;

use disk_core::testing::Op;
use disk_core::testing::model::campaign;
use disk_core::testing::trials::faults::{self, Effect, Table};

#[test]
fn one_fault_in_a_chain_at_work_harms_the_requests_that_met_it_and_nothing_else() {
    let table = RefCell::new(Table::new());
    let figures = campaign::run("faults", 24, &faults::cases(), |case| faults::trial(&case, &table));
    let table = table.into_inner();
    println!("\n| file | part | operation | fault | outcome | times |\n|---|---|---|---|---|---|");
    for (row, times) in &table {
        let faults::Row { file, place, op, effect, outcome } = row;
        println!("| {file} | {place} | {op:?} | {effect:?} | {outcome} | {times} |");
    }
    let mut met: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    table.iter().for_each(|(row, times)| *met.entry((row.file, row.place)).or_default() += times);
    let struck = |test: &dyn Fn(&faults::Row) -> bool| table.keys().any(test);
    for place in [("top", "data"), ("top", "metadata"), ("top", "file"), ("parent", "data")] {
        assert!(met.contains_key(&place), "nothing struck {place:?}: {met:?}");
    }
    for effect in
        [Effect::Fails, Effect::NoSpace, Effect::TornSector, Effect::TornPage, Effect::Slow, Effect::Hangs]
    {
        assert!(struck(&|row| row.effect == effect), "no {effect:?}");
    }
    assert!(struck(&|row| row.op == Op::Flush
        && row.effect == Effect::Fails
        && row.outcome.contains("all flushes")));
    assert!(
        !struck(&|row| row.op == Op::Flush && row.outcome == "no request failed"),
        "somebody is told of each"
    );
    assert!(struck(&|row| row.outcome.contains("others went on")));
    assert!(figures.faults > 400, "{figures}");
}

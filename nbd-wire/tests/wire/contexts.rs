//! Metadata contexts: LIST_META_CONTEXT, SET_META_CONTEXT, and what they lead to.

use nbd_wire::client::{Answer, context_data, info_data};
use nbd_wire::consts::{option, option_reply};
use nbd_wire::{Context, ContextId, TransmissionFlags};

use crate::played::{Shelf, Talk};

const ALLOCATION: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";

fn structured(shelf: &Shelf) -> Talk<'_> {
    let mut talk = Talk::new(shelf);
    talk.acknowledged(option::STRUCTURED_REPLY, &[]);
    talk
}

/// Names and numbers of the contexts that an option is answered with.
#[track_caller]
fn contexts(talk: &mut Talk<'_>, number: u32, export: &str, queries: &[&str]) -> Vec<(String, u32)> {
    let replies = talk.ask(number, &context_data(export, queries));
    let (last, contexts) = replies.split_last().expect("there are replies");
    assert_eq!(last.answer(), Answer::Ack, "the last reply ends it");
    contexts
        .iter()
        .map(|told| match told.answer() {
            Answer::Context { id, name } => (name.to_owned(), id.0),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[track_caller]
fn names(talk: &mut Talk<'_>, number: u32, queries: &[&str]) -> Vec<String> {
    contexts(talk, number, "first", queries).into_iter().map(|(name, _)| name).collect()
}

/// The contexts of a session on an export.
#[track_caller]
fn selected(mut talk: Talk<'_>, export: &str) -> Vec<Context> {
    let (_, session) = talk.chosen(option::GO, &info_data(export, &[]));
    session.contexts().iter().map(|(_, context)| *context).collect()
}

#[test]
fn context_options_without_structured_replies_are_invalid() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        talk.refused(number, &context_data("first", &[ALLOCATION]), option_reply::ERR_INVALID);
    }
}

#[test]
fn a_list_without_queries_names_every_context_under_the_number_zero() {
    let shelf = Shelf::new();
    let listed = contexts(&mut structured(&shelf), option::LIST_META_CONTEXT, "first", &[]);
    assert_eq!(listed, [(ALLOCATION.to_owned(), 0), (DEPTH.to_owned(), 0)]);
}

#[test]
fn a_namespace_alone_lists_all_that_is_in_it_and_selects_nothing() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    for (query, name) in [("base:", ALLOCATION), ("qemu:", DEPTH)] {
        assert_eq!(names(&mut talk, option::LIST_META_CONTEXT, &[query]), [name]);
        assert!(names(&mut talk, option::SET_META_CONTEXT, &[query]).is_empty());
    }
    assert!(selected(talk, "first").is_empty());
}

#[test]
fn queries_of_unknown_namespaces_unknown_leaves_and_without_a_colon_are_ignored() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    let odd = ["x-nobody:knows", "base:nothing", "nocolon", "", ":", "base:allocation:x", "BASE:ALLOCATION"];
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        assert!(names(&mut talk, number, &odd).is_empty());
        let queries = [&odd[..], &[ALLOCATION]].concat();
        assert_eq!(names(&mut talk, number, &queries), [ALLOCATION]);
    }
}

#[test]
fn selected_contexts_have_different_numbers_and_are_those_of_the_session() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    let told = contexts(&mut talk, option::SET_META_CONTEXT, "first", &[DEPTH, ALLOCATION, DEPTH]);
    assert_eq!(told.len(), 2, "a context that is named twice is selected once: {told:?}");
    assert_ne!(told[0].1, told[1].1);
    let (_, session) = talk.chosen(option::GO, &info_data("first", &[]));
    let in_session: Vec<_> =
        session.contexts().iter().map(|(id, context)| (context.name().to_owned(), id.0)).collect();
    assert_eq!(told, in_session);
}

#[test]
fn no_queries_select_no_context() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[ALLOCATION]), [ALLOCATION]);
    assert!(names(&mut talk, option::SET_META_CONTEXT, &[]).is_empty());
    assert!(selected(talk, "first").is_empty());
}

#[test]
fn a_later_selection_replaces_the_earlier_one() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[ALLOCATION]), [ALLOCATION]);
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[DEPTH]), [DEPTH]);
    assert_eq!(selected(talk, "first"), [Context::AllocationDepth]);
}

#[test]
fn a_selection_that_fails_loses_the_earlier_one_too() {
    let shelf = Shelf::new();
    let failing = [
        (context_data("third", &[ALLOCATION]), option_reply::ERR_UNKNOWN),
        (vec![0; 3], option_reply::ERR_INVALID),
        (vec![0; 100 << 10], option_reply::ERR_TOO_BIG),
    ];
    for (data, error) in failing {
        let mut talk = structured(&shelf);
        assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[ALLOCATION]), [ALLOCATION]);
        talk.refused(option::SET_META_CONTEXT, &data, error);
        assert!(selected(talk, "first").is_empty());
    }
}

#[test]
fn a_selection_holds_for_the_export_that_it_named_and_no_other() {
    let shelf = Shelf::new();
    for (set, go, holds) in [
        ("first", "first", true),
        ("first", "second", false),
        ("second", "second", true),
        // The default export under both of its names.
        ("", "first", true),
        ("first", "", true),
        ("", "second", false),
    ] {
        let mut talk = structured(&shelf);
        assert_eq!(contexts(&mut talk, option::SET_META_CONTEXT, set, &[ALLOCATION]).len(), 1);
        assert_eq!(selected(talk, go).len(), usize::from(holds), "{set:?} then {go:?}");
    }
}

#[test]
fn a_selection_holds_for_export_name_too() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[DEPTH]), [DEPTH]);
    let (_, session) = talk.chosen(option::EXPORT_NAME, b"first");
    assert_eq!(session.contexts(), [(Context::AllocationDepth.id(), Context::AllocationDepth)]);
}

#[test]
fn listing_contexts_leaves_the_selection_alone() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[ALLOCATION]), [ALLOCATION]);
    names(&mut talk, option::LIST_META_CONTEXT, &[DEPTH]);
    assert_eq!(selected(talk, "first"), [Context::Allocation]);
}

#[test]
fn contexts_of_an_unknown_export_are_unknown() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        talk.refused(number, &context_data("third", &[]), option_reply::ERR_UNKNOWN);
    }
}

#[test]
fn a_query_that_reaches_beyond_the_options_data_is_invalid() {
    let shelf = Shelf::new();
    let mut talk = structured(&shelf);
    let good = context_data("first", &[ALLOCATION]);
    let at = good.len() - ALLOCATION.len() - 4;
    let mut beyond = good.clone();
    beyond[at..at + 4].copy_from_slice(&100_u32.to_be_bytes());
    let mut many = good.clone();
    many[at - 4..at].copy_from_slice(&u32::MAX.to_be_bytes());
    let longer = [&good[..], &[0]].concat();
    let no_text = context_data("first", &["xx"]).into_iter().map(|b| if b == b'x' { 0xff } else { b });
    for data in [beyond, many, longer, no_text.collect(), good[..good.len() - 1].to_vec(), Vec::new()] {
        for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            talk.refused(number, &data, option_reply::ERR_INVALID);
        }
    }
    assert_eq!(names(&mut talk, option::SET_META_CONTEXT, &[ALLOCATION]), [ALLOCATION]);
}

#[test]
fn payloads_of_status_requests_are_offered_with_extended_headers_and_a_selected_context() {
    let shelf = Shelf::new();
    for (headers, query, offered) in [
        (option::STRUCTURED_REPLY, ALLOCATION, false),
        (option::EXTENDED_HEADERS, "base:", false),
        (option::EXTENDED_HEADERS, ALLOCATION, true),
    ] {
        let mut talk = Talk::new(&shelf);
        talk.acknowledged(headers, &[]);
        contexts(&mut talk, option::SET_META_CONTEXT, "first", &[query]);
        let (_, session) = talk.chosen(option::GO, &info_data("first", &[]));
        assert_eq!(session.flags().has(TransmissionFlags::BLOCK_STATUS_PAYLOAD), offered);
    }
}

#[test]
fn numbers_of_contexts_are_those_that_the_type_gives() {
    assert_eq!(Context::Allocation.id(), ContextId(0));
    assert_eq!(Context::AllocationDepth.id(), ContextId(1));
}

//! What a VDI says about itself, for people.

use super::header::{Geometry, Header};
use crate::format::Value;

/// The facts of a header beside those that every format has, in the order to show them.
pub fn facts(header: &Header) -> Vec<(&'static str, Value)> {
    let number = |n: u32| Value::Number(n.into());
    let shape = &header.shape;
    let (major, minor) = header.version;
    let mut facts = vec![
        ("version", Value::Text(format!("{major}.{minor}"))),
        ("header-size", number(header.header_size)),
        ("creator", Value::Text(header.text.clone())),
        ("zero-expand", Value::Flag(header.flags & 1 != 0)),
        ("flags", number(header.flags)),
        ("blocks", number(shape.blocks)),
        ("blocks-allocated", number(header.blocks_allocated)),
        ("map-offset", Value::Bytes(shape.map_offset)),
        ("data-offset", Value::Bytes(shape.data_offset)),
        ("block-extra", Value::Bytes(shape.block_extra)),
    ];
    let geometries =
        [("geometry", Some(&header.geometry)), ("logical-geometry", header.logical_geometry.as_ref())];
    for (key, found) in geometries {
        // Without cylinders it is not set, and 0/0/0 would be no geometry.
        if let Some(set) = found.filter(|geometry| geometry.cylinders > 0) {
            facts.push((key, Value::Text(geometry(set))));
        }
    }
    if header.disk_size != shape.disk_size {
        facts.push(("size-before-rounding", Value::Bytes(header.disk_size)));
    }
    if !header.comment.is_empty() {
        facts.push(("comment", Value::Text(header.comment.clone())));
    }
    facts
}

fn geometry(geometry: &Geometry) -> String {
    let Geometry { cylinders, heads, sectors, sector_size } = geometry;
    format!("{cylinders} cylinders, {heads} heads, {sectors} sectors of {sector_size} bytes")
}

//! Owns the short form of the seats in the status. Every replica reads the list and it is written during
//! rollouts, so 1,000 seats must stay below 64 KB: what seats have in common is written once.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::Seat;

/// Up to here the status holds a readable list, about 170 bytes a seat.
pub const READABLE: usize = 256;

/// Seats that share backend, weight and the start of their occupants' names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PackedSeats {
    /// Backend is the entry of spec.backends the seats belong to.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// Weight of each of the seats relative to the backend's other seats.
    pub weight: u16,
    /// Prefix of the occupants' names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub prefix: String,
    /// Seats lists them, separated by spaces: number/rest of the occupant's name/uid, or the number alone where nobody
    /// sat yet. After an @ stands when the occupant left, in milliseconds since 1970.
    #[schemars(length(max = 1_048_576))]
    pub seats: String,
}

/// A packed list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` is no seat: expected number, number/name/uid, and @milliseconds where it is vacant")]
pub struct SeatsError {
    entry: String,
}

/// The short form of `seats`.
pub fn pack(seats: &[Seat]) -> Vec<PackedSeats> {
    let mut runs: BTreeMap<(&str, u16, &str), String> = BTreeMap::new();
    for seat in seats {
        let name = seat.occupant.as_deref().unwrap_or_default();
        let prefix = name.rfind('-').map_or("", |dash| &name[..=dash]);
        let run = runs.entry((&seat.backend, seat.weight, prefix)).or_default();
        if !run.is_empty() {
            run.push(' ');
        }
        run.push_str(&entry(seat, &name[prefix.len()..]));
    }
    let packed = |((backend, weight, prefix), seats): ((&str, u16, &str), String)| PackedSeats {
        backend: backend.into(),
        weight,
        prefix: prefix.into(),
        seats,
    };
    runs.into_iter().map(packed).collect()
}

fn entry(seat: &Seat, name: &str) -> String {
    let mut text = seat.seat.to_string();
    if let (Some(_), Some(uid)) = (&seat.occupant, &seat.uid) {
        text = format!("{text}/{name}/{uid}");
    }
    if let Some(vacated) = &seat.vacated {
        text = format!("{text}@{}", vacated.0.as_millisecond());
    }
    text
}

/// The seats in the short form, ascending.
pub fn unpack(runs: &[PackedSeats]) -> Result<Vec<Seat>, SeatsError> {
    let mut seats = Vec::new();
    for run in runs {
        for entry in run.seats.split_ascii_whitespace() {
            seats.push(seat(run, entry).ok_or_else(|| SeatsError { entry: entry.into() })?);
        }
    }
    seats.sort_by_key(|seat| seat.seat);
    Ok(seats)
}

fn seat(run: &PackedSeats, entry: &str) -> Option<Seat> {
    let (entry, vacated) = match entry.rsplit_once('@') {
        Some((entry, ms)) => (entry, Some(MicroTime(Timestamp::from_millisecond(ms.parse().ok()?).ok()?))),
        None => (entry, None),
    };
    let mut parts = entry.split('/');
    let number = parts.next()?.parse().ok()?;
    let occupant = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => None,
        (Some(name), Some(uid), None) => Some((format!("{}{name}", run.prefix), uid.to_string())),
        _ => return None,
    };
    let (occupant, uid) = occupant.unzip();
    Some(Seat { seat: number, backend: run.backend.clone(), occupant, uid, weight: run.weight, vacated })
}

#[cfg(test)]
mod tests {
    use super::super::status::LoadBalancerPoolStatus;
    use super::*;

    /// Seats as a cluster has them: pods of three ReplicaSets with long names, real UIDs, some vacant.
    fn realistic(count: u16) -> Vec<Seat> {
        let replica_sets =
            ["checkout-api-7d9f8b6c5d-", "checkout-api-6b4c9d7f8-", "checkout-api-canary-5c8d7b9f64-"];
        (0..count)
            .map(|seat| {
                let left = seat % 50 == 3;
                Seat {
                    seat,
                    backend: if seat % 10 == 0 { "canary".into() } else { "stable".into() },
                    occupant: Some(format!("{}x{:04x}", replica_sets[usize::from(seat % 3)], seat)),
                    uid: Some(format!("0b1c6a3e-7c1d-4f52-9a3e-{:012x}", u64::from(seat) * 7919)),
                    weight: 1,
                    vacated: left.then(|| MicroTime(Timestamp::from_millisecond(1_762_300_000_123).unwrap())),
                }
            })
            .collect()
    }

    #[test]
    fn a_thousand_seats_stay_below_64_kb() {
        for count in [256, 1000] {
            let mut status = LoadBalancerPoolStatus::default();
            status.set_seats(realistic(count));
            let bytes = serde_json::to_vec(&status).unwrap().len();
            assert!(bytes < 64 * 1024, "{count} seats take {bytes} bytes");
        }
    }

    #[test]
    fn both_forms_read_back_as_written() {
        for count in [0, 1, 256, 257, 1000] {
            let mut status = LoadBalancerPoolStatus::default();
            status.set_seats(realistic(count));
            let text = serde_json::to_string(&status).unwrap();
            let read: LoadBalancerPoolStatus = serde_json::from_str(&text).unwrap();
            assert_eq!(read.all_seats().unwrap(), realistic(count), "{count} seats");
        }
    }

    #[test]
    fn addresses_and_seats_nobody_took_yet_survive_packing() {
        let seat = |seat, name: Option<&str>| Seat {
            seat,
            backend: "outside".into(),
            occupant: name.map(Into::into),
            uid: name.map(Into::into),
            weight: 7,
            vacated: None,
        };
        let seats = vec![seat(0, Some("[2001:db8::1]:80")), seat(1, None), seat(2, Some("192.0.2.1:8080"))];
        assert_eq!(unpack(&pack(&seats)).unwrap(), seats);
    }

    #[test]
    fn a_broken_entry_is_named() {
        for entry in ["x", "1/a", "1/a/b/c", "1@", "70000", "1/a/b@soon"] {
            let run = PackedSeats {
                backend: "b".into(),
                weight: 1,
                prefix: String::new(),
                seats: format!("0 {entry}"),
            };
            assert_eq!(unpack(&[run]), Err(SeatsError { entry: entry.into() }));
        }
    }
}

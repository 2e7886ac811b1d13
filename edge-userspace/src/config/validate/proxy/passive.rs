//! When the answers of a server speak against it.

use std::time::Duration;

use super::{
    share,
    upstreams::{HOLD, TIMEOUT},
};
use crate::config::{
    proxy::{
        Route, Upstream,
        route::Action,
        upstream::{ErrorRate, MAX_WINDOW, Passive},
    },
    quantity::spelt,
    raw::proxy as raw,
    report::Report,
    validate::{number, span},
};

pub(super) fn passive(raw: &raw::Passive, report: &mut Report<'_>) -> Passive {
    let default = Passive::default();
    Passive {
        consecutive_errors: number(
            raw.consecutive_errors.as_ref(),
            default.consecutive_errors,
            1,
            1000,
            report,
        ),
        errors: error_rate(raw, report),
        eject: span(raw.eject.as_ref(), default.eject, HOLD, report),
        max_ejected_permille: share(
            raw.max_ejected.as_ref(),
            default.max_ejected_permille,
            0,
            report,
        ),
    }
}

fn error_rate(raw: &raw::Passive, report: &mut Report<'_>) -> Option<ErrorRate> {
    let Some(rate) = &raw.error_rate else {
        let alone = [
            raw.window.as_ref().map(|at| &at.place),
            raw.latency.as_ref().map(|at| &at.place),
        ];
        for place in alone.into_iter().flatten() {
            report.problem_without_value(
                place,
                "without effect, for it belongs to error_rate; add that, such as error_rate = 0.5, or remove this key",
            );
        }
        return None;
    };
    Some(ErrorRate {
        permille: share(Some(rate), 500, 1, report),
        window: number(
            raw.window.as_ref(),
            ErrorRate::WINDOW,
            1,
            MAX_WINDOW,
            report,
        ),
        latency: (raw.latency.as_ref())
            .map(|at| span(Some(at), Duration::from_secs(1), TIMEOUT, report)),
    })
}

/// Warns of what can never take a server out of use. `raw` are those of the upstreams.
pub(super) fn idle(
    raw: &[raw::Upstream],
    upstreams: &[Upstream],
    routes: &[Route],
    report: &mut Report<'_>,
) {
    for (i, (raw, upstream)) in raw.iter().zip(upstreams).enumerate() {
        let (Some(raw), Some(passive)) = (&raw.passive, upstream.passive) else {
            continue;
        };
        if passive.max_ejected_permille == 0 {
            report.warn_without_value(
                &raw.place.child("max_ejected"),
                "with 0 no server is ever left alone, so that all of passive is without effect; raise it, or remove the section",
            );
        } else if upstream.servers.len() == 1 && passive.max_ejected_permille < 1000 {
            report.warn_without_value(
                &raw.place,
                "without effect, for the only server of an upstream is never left alone; add another one, or remove the section",
            );
        }
        let Some((latency, at)) = passive
            .errors
            .and_then(|errors| errors.latency)
            .zip(raw.latency.as_ref())
        else {
            continue;
        };
        // A route may give more time than the upstream.
        let own = upstream.timeouts.first_byte;
        let longest = routes.iter().filter_map(|route| match &route.action {
            Action::Forward(split) if split.iter().any(|(to, _)| *to == i) => {
                Some(route.timeouts.over(upstream.timeouts).first_byte)
            }
            _ => None,
        });
        let longest = longest.fold(own, Duration::max);
        if latency >= longest {
            report.warn(
                &at.place,
                format_args!(
                    "no shorter than timeouts.first_byte ({}), when an answer is a failure anyway; shorten it, or remove it",
                    spelt(longest)
                ),
            );
        }
    }
}

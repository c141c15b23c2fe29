"""EM rates of judged answers: rules, intervals, comparisons, agreement of judges."""

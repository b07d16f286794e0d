"use strict";
(() => {
  const data = JSON.parse(document.getElementById("slider-data").textContent);
  const element = (id) => document.getElementById(id);
  const range = element("slider-range"), choice = element("slider-question"), prevalence = element("slider-prevalence");
  const marks = element("slider-marks");
  const share = (above, below) => (below > 0 ? above / below : NaN);
  const format = (value) => (Number.isFinite(value) ? value.toFixed(3) : "—");
  // Modified Wilson interval (95 %) of a share, as compute_wilson has it; images taken as independent, so none if
  // patients have several. Poisson limits of 1, 2 and 3 rows: the 5 % quantiles of gamma distributions.
  const poisson = [0, 0.0512933, 0.3553615, 0.8176914];
  const wilson = (hits, total) => {
    if (!(total > 0) || data.several_images) return "";
    const z = 1.959964, p = hits / total, scale = 1 + z * z / total;
    const middle = (p + z * z / (2 * total)) / scale;
    const reach = (z / scale) * Math.sqrt(p * (1 - p) / total + z * z / (4 * total * total));
    const few = poisson[hits] ? poisson[hits] / total : 1, others = poisson[total - hits];
    const low = Math.max(0, Math.min(middle - reach, few));
    const high = Math.min(1, Math.max(middle + reach, others ? 1 - others / total : 0));
    return `${low.toFixed(3)} – ${high.toFixed(3)}`;
  };
  const question = () => data.questions[choice ? Number(choice.value) : 0];
  const put = (id, value, interval = "") => {
    element(id).textContent = typeof value === "number" ? format(value) : value;
    const beside = element(`${id}-interval`);
    if (beside) beside.textContent = interval;
  };
  const update = () => {
    const q = question(), step = Number(range.value);
    const tp = q.true_positives[step], fp = q.false_positives[step], fn = q.positives - tp, tn = q.negatives - fp;
    const sensitivity = share(tp, q.positives), specificity = share(tn, q.negatives);
    const p = Number(prevalence.value) / 100;
    // At a frozen threshold the intervals are those of the table.
    const frozen = q.frozen.find((mark) => mark.step === step);
    const interval = (name, hits, total) => (frozen ? frozen.intervals[name] : wilson(hits, total));
    put("slider-threshold", q.labels[step]);
    for (const [id, count] of [["tp", tp], ["fp", fp], ["fn", fn], ["tn", tn]]) {
      put(`slider-${id}`, String(count));
      const row = id === "tp" || id === "fn" ? q.positives : q.negatives;
      element(`slider-${id}`).parentElement.style.setProperty("--share", String(share(count, row) || 0));
    }
    put("slider-sensitivity", sensitivity, interval("sensitivity", tp, q.positives));
    put("slider-specificity", specificity, interval("specificity", tn, q.negatives));
    put("slider-ppv", share(tp, tp + fp), interval("ppv", tp, tp + fp));
    put("slider-npv", share(tn, tn + fn), interval("npv", tn, tn + fn));
    put("slider-ppv-stated", share(sensitivity * p, sensitivity * p + (1 - specificity) * (1 - p)));
    put("slider-npv-stated", share(specificity * (1 - p), specificity * (1 - p) + (1 - sensitivity) * p));
    put("slider-lr-positive", share(sensitivity, 1 - specificity));
    put("slider-lr-negative", share(1 - sensitivity, specificity));
    put("slider-called", `${tp + fp} of ${q.positives + q.negatives}`);
  };
  const move = (step) => {
    range.max = String(question().thresholds.length - 1);
    range.value = String(step);
    update();
  };
  const choose = () => {
    const q = question();
    marks.replaceChildren(...q.frozen.map((mark) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${mark.title}: ${q.labels[mark.step]}`;
      button.addEventListener("click", () => move(mark.step));
      return button;
    }));
    prevalence.value = (100 * q.positives / (q.positives + q.negatives)).toFixed(1);
    move(q.start);
  };
  range.addEventListener("input", update);
  prevalence.addEventListener("input", update);
  if (choice) choice.addEventListener("change", choose);
  choose();
  // report.html#threshold=0.3 opens the page at the nearest step to that threshold.
  const asked = /^#threshold=([0-9.]+)$/.exec(location.hash);
  if (asked) {
    const distances = question().thresholds.map((threshold) => Math.abs(threshold - Number(asked[1])));
    move(distances.indexOf(Math.min(...distances)));
  }
})();

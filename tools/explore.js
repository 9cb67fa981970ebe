// The mathematics of the page that `run.py explore` makes: pure functions of numbers and arrays,
// those of the scripts in their names and shapes. tests/tools/test_explore.py compares them.
const maths = (() => {
  const sum = values => values.reduce((a, b) => a + b, 0);
  const mean = values => sum(values) / values.length;
  const column = (rows, k) => rows.map(row => row[k]);
  const groups = (values, size) =>
    Array.from({length: values.length / size}, (_, p) => values.slice(p * size, (p + 1) * size));

  // Weights of sum 1 with the k-th at `value`, the others in their proportions, or equal where all
  // of them are 0.
  function turned(weights, k, value) {
    const rest = sum(weights) - weights[k];
    const part = w => (rest > 1e-12 ? w / rest : 1 / (weights.length - 1));
    return weights.map((w, j) => (j === k ? value : (1 - value) * part(w)));
  }

  // s_i = sum_k w_k r_ik. rewards [B][K], weights [K] -> [B]. A reward that is null does not apply;
  // neither does the score then, where none applies.
  const scalarize = (rewards, weights) => rewards.map(row =>
    row.every(r => r === null) ? null : sum(row.map((r, k) => weights[k] * r)));

  // What an advantage subtracts from its score and multiplies it with. [B] -> [B] of {base, scale}.
  function normalisers(scores, lengths, size, estimator) {
    if (estimator === 'reinforce') { // over the batch, every token counted once
      const counted = lengths.map((length, i) => scores[i] === null ? 0 : length);
      const tokens = sum(counted), over = values => sum(values.map((v, i) => counted[i] * v));
      const base = over(scores) / (tokens || 1);
      const variance = over(scores.map(s => (s - base) ** 2)) / Math.max(tokens - 1, 1);
      return scores.map(() => ({base, scale: 1 / Math.sqrt(variance + 1e-8)}));
    }
    return groups(scores, size).flatMap(own => { // within the prompt
      const known = own.filter(s => s !== null), base = sum(known) / (known.length || 1);
      const variance = sum(known.map(s => (s - base) ** 2)) / Math.max(known.length - 1, 1);
      return own.map(() => ({base, scale: 1 / (Math.sqrt(variance) + 1e-6)}));
    });
  }

  // algos/*.py: estimate_advantages. scores, lengths [B] -> [B].
  const estimateAdvantages = (scores, lengths, size, estimator) =>
    normalisers(scores, lengths, size, estimator)
      .map((n, i) => scores[i] === null ? 0 : (scores[i] - n.base) * n.scale);

  // The advantages of each objective by itself. rewards [B][K] -> [B][K].
  function estimateEach(rewards, ...how) {
    const columns = rewards[0].map((_, k) => estimateAdvantages(column(rewards, k), ...how));
    return rewards.map((_, i) => column(columns, i));
  }

  // algos/pama.py: the number between the lowest and the highest advantage that is nearest to 0.
  const paretoScalar = advantages => // [B][K] -> [B]
    advantages.map(own => Math.max(Math.min(...own), 0) + Math.min(Math.max(...own), 0));

  // common/controllers.py: within_prompt_covariance. weight [B], rewards [B][K] -> [K]. A reward
  // that is null does not apply, and is left out.
  function withinPromptCovariance(weight, rewards, size) {
    const about = own => {
      const known = own.filter(r => r !== null), base = mean(known);
      return own.map(r => r === null ? null : r - base);
    };
    const weights = groups(weight, size).flatMap(about);
    return rewards[0].map((_, k) => {
      const own = groups(column(rewards, k), size).flatMap(about);
      const products = weights.map((w, i) => w * own[i]).filter((_, i) => own[i] !== null);
      return sum(products) / (products.length || 1);
    });
  }

  // Predicted change of a mean reward by the score: nats per unit of advantage * covariance, of
  // which the unbiased one is meant.
  const byScore = (covariance, rate, size) => rate * covariance * size / (size - 1);

  // common/controllers.py: first_order_change. drift, age [B], rewards [B][K] -> [K]; null where
  // nothing was fresh or known, and 0 of an objective that no fresh completion has.
  function byMove(drift, age, rewards, size, updates) {
    const fresh = age.map((_, i) => i).filter(i => age[i] > 0);
    if (!fresh.length || fresh.some(i => drift[i] === null)) return null;
    const move = fresh.map(i => drift[i] * updates / age[i]), own = fresh.map(i => rewards[i]);
    return withinPromptCovariance(move, own, size).map((c, k) => {
      const known = groups(column(own, k), size).map(all => all.filter(r => r !== null).length);
      return c * sum(known) / (sum(known.map(n => Math.max(n - 1, 0))) || 1);
    });
  }

  return {
    sum, mean, column, groups, turned, scalarize, normalisers, estimateAdvantages,
    estimateEach, paretoScalar, withinPromptCovariance, byScore, byMove,
  };
})();

// The mathematics of the page that `run.py explore` makes: pure functions of numbers and arrays, none changes its arguments. They are those
// of the scripts, in their names and shapes; tests/tools/test_explore.py compares them number by number.
const maths = (() => {
  const sum = values => values.reduce((a, b) => a + b, 0);
  const mean = values => sum(values) / values.length;
  const groups = (values, size) => Array.from({length: values.length / size}, (_, p) => values.slice(p * size, (p + 1) * size));
  const column = (rows, k) => rows.map(row => row[k]);

  // Biased (1/G) covariance of two lists.
  function covariance(x, y) {
    const a = mean(x), b = mean(y);
    return mean(x.map((value, i) => (value - a) * (y[i] - b)));
  }

  // Weights on the simplex; equal where all are 0.
  function shares(weights) {
    const total = sum(weights);
    return weights.map(w => (total > 0 ? w / total : 1 / weights.length));
  }

  // Weights of sum 1 with the k-th at `value`, the others in their proportions, or equal where all of them are 0.
  function turned(weights, k, value) {
    const rest = sum(weights) - weights[k];
    return weights.map((w, j) => (j === k ? value : (1 - value) * (rest > 1e-12 ? w / rest : 1 / (weights.length - 1))));
  }

  // s_i = sum_k w_k r_ik. rewards [B][K], weights [K] -> [B].
  const scalarize = (rewards, weights) => rewards.map(row => sum(row.map((r, k) => weights[k] * r)));

  // What an advantage subtracts from a score and multiplies it with, for each prompt. scores, lengths [B] -> [P] of {base, scale}.
  function normalisers(scores, lengths, size, estimator) {
    if (estimator === 'reinforce') { // over the batch, every token counted once
      const n = sum(lengths), base = sum(scores.map((s, i) => lengths[i] * s)) / n;
      const scale = 1 / Math.sqrt(sum(scores.map((s, i) => lengths[i] * (s - base) ** 2)) / (n - 1) + 1e-8);
      return groups(scores, size).map(() => ({base, scale}));
    }
    return groups(scores, size).map(own => { // within the prompt
      const base = mean(own);
      return {base, scale: 1 / (Math.sqrt(sum(own.map(s => (s - base) ** 2)) / (size - 1)) + 1e-6)};
    });
  }

  // algos/*.py: estimate_advantages. scores, lengths [B] -> [B].
  function estimateAdvantages(scores, lengths, size, estimator) {
    const found = normalisers(scores, lengths, size, estimator);
    return scores.map((s, i) => (s - found[Math.floor(i / size)].base) * found[Math.floor(i / size)].scale);
  }

  // The advantages of each objective by itself. rewards [B][K] -> [B][K].
  function eachAdvantage(rewards, lengths, size, estimator) {
    const columns = rewards[0].map((_, k) => estimateAdvantages(column(rewards, k), lengths, size, estimator));
    return rewards.map((_, i) => column(columns, i));
  }

  // algos/pama.py: the number between the lowest and the highest advantage that is nearest to 0. [B][K] -> [B].
  const paretoScalar = advantages => advantages.map(own => Math.max(Math.min(...own), 0) + Math.min(Math.max(...own), 0));

  // algos/*.py: within_prompt_covariance. weight [B], rewards [B][K] -> [K].
  function withinPromptCovariance(weight, rewards, size) {
    const own = groups(weight, size);
    return rewards[0].map((_, k) => mean(groups(column(rewards, k), size).map((r, p) => covariance(own[p], r))));
  }

  // Whose weight the covariance of the advantages with each reward comes from: row k, column j is the mean over prompts of
  // scale_p w_j Cov(r_k, r_j). Row k adds up to the covariance with the advantages. With every scale 1 it is tools/explain.py: outvoted.
  function votes(rewards, weights, scales, size) {
    const columns = weights.map((_, k) => groups(column(rewards, k), size));
    return columns.map(r => columns.map((other, j) => weights[j] * mean(r.map((own, p) => scales[p] * covariance(own, other[p])))));
  }

  // Predicted change of a mean reward by the score: nats per unit of advantage * covariance, of which the unbiased one is meant.
  const byScore = (covariance, rate, size) => rate * covariance * size / (size - 1);

  // common/observe.py: first_order_change. drift [B], age [P] -> {law [K], rate, nats}, null where nothing was fresh or known.
  function firstOrderChange(drift, age, advantages, rewards, size, updates) {
    const rows = drift.map((_, i) => i).filter(i => age[Math.floor(i / size)] > 0);
    if (!rows.length || rows.some(i => drift[i] === null)) return null;
    const move = rows.map(i => drift[i] * updates / age[Math.floor(i / size)]), paid = rows.map(i => advantages[i]), own = rows.map(i => rewards[i]);
    const unbiased = (x, y) => mean(groups(x, size).map((a, p) => covariance(a, groups(y, size)[p]))) * size / (size - 1);
    return {
      law: own[0].map((_, k) => unbiased(move, column(own, k))),
      rate: unbiased(move, paid) / Math.max(unbiased(paid, paid), 1e-12),
      nats: Math.sqrt(unbiased(move, move)),
    };
  }

  return {sum, mean, column, groups, shares, turned, scalarize, normalisers, estimateAdvantages, eachAdvantage, paretoScalar, withinPromptCovariance, votes, byScore, firstOrderChange};
})();

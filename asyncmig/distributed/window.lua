-- The budgets of one API key, shared by all processes that use the key. The algorithm is that of
-- asyncmig/_core/limiter.py, which explains the rules and has the same names. The state is in Redis.
--
-- One difference: a process that took a slot may die. A slot without an answer is free again `timeout` plus one window
-- after it was taken. After `LAPSE` seconds without an answer to a probe, another process sends a probe.
--
-- A request may charge several budgets. It gets a slot of each, or none.
--
-- KEYS, four for each budget:
--   state (hash)
--   slots (sorted set; score: when the slot is free again)
--   unanswered slots (sorted set; score: when the slot was taken)
--   accepted requests (sorted set; score: when the answer arrived)
-- and at the end: clients (sorted set; score: when the client ran the script last)
--
-- ARGV:
--   1 the client
--   2 timeout
--   3 speed: the client's seconds in one second of Redis
--   4 a random number in [0, 1)
--   5 the name of a new slot; empty if no request waits
--   6 the time; if empty, Redis's own
--   7 the name of the set of budgets; empty for one budget
--   then for each budget: limit, window, the number of reports, and for each report: slot, event, seconds (see
--   budget_store.py)
--
-- Returns for each budget: granted (0 or 1), seconds until another attempt can succeed, W, B, slots taken, live clients,
-- seconds until the hold ends, the epoch, the turn, and whether Redis has lost data of this client (0 or 1). All times
-- are on Redis's clock, in the client's seconds.
--
-- Redis can lose this state, a part of it, or its latest writes: by FLUSHALL, a restart, an eviction or a failover. Each
-- client therefore reports the epoch and the turn of the last reply that it received. If they do not match, or if a key
-- has not as many entries as were written to it, a new epoch begins. Then no slot is granted for `settle_time` seconds,
-- and each client of an earlier epoch must report its slots again. Slots have names, so no slot counts twice. A client
-- that waits for no slot does not report in time. The others report how many slots were taken in total, and the script
-- adds the difference.

local client, timeout, speed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local random, want, set = tonumber(ARGV[4]), ARGV[5], ARGV[7]
local CLIENTS = KEYS[#KEYS]
local limit, window, STATE, SLOTS, UNANSWERED, ACCEPTED  -- of the present budget; `use` sets them

local MARGIN, SPREAD, FEWEST_UNPROVEN, PROVEN, MOST_PATIENCE = 0.05, 0.02, 4, 90, 16
local LONGEST_PROBE_WAIT, LAPSE, SHORT_WINDOW = 8, 10, 120
local LONGEST_WAIT, ASKS_PER_WINDOW = 5, 12  -- a waiting client asks at least so often; see budget_client.py
local DELAY = 2        -- seconds by which a client may ask later
local RECHECK = 0.25   -- seconds until another attempt, if the next slot depends on an answer to another client
local LISTED = 600     -- seconds without a message after which a client is not counted any more
local OPEN, HOLD, PROBE = 0, 1, 2
local NEVER, FOREVER = -1e300, 1e300
local TIMES = {
  "held_until", "cut_at", "probe_at", "last_send", "level_at", "review_at", "bucket_at", "seen", "settled_at",
  "used_at", "last_accepted",
}
local TEXTS = {probe = true, epoch = true}
local HELD = "held "  -- with the name of a set: the field of the time until which its requests are held
local s  -- the state of the present budget

-- Reading and writing

local function counted()
  return {n_slots = SLOTS, n_unanswered = UNANSWERED, n_accepted = ACCEPTED}
end

local function use(budget)
  s, limit, window = budget.state, budget.limit, budget.window
  STATE, SLOTS, UNANSWERED, ACCEPTED = budget.keys[1], budget.keys[2], budget.keys[3], budget.keys[4]
end

local function load_state()
  local fields = redis.call("HGETALL", STATE)
  for i = 1, #fields, 2 do
    s[fields[i]] = TEXTS[fields[i]] and fields[i + 1] or tonumber(fields[i + 1])
  end
  return #fields > 0
end

local function reset(to)
  s.limit, s.slots, s.burst, s.ceiling = to, to, to, to
  s.slots_known, s.burst_known, s.patience, s.step = to, to, 1, 1
end

local function new_state()
  reset(limit)
  s.configured, s.last_accepted = limit, NEVER
  s.mode, s.probe, s.probes, s.proven, s.was_full, s.level, s.clean, s.busy, s.refused = OPEN, "", 0, 0, 0, 0, 0, 0, 0
  s.held_until, s.cut_at, s.probe_at, s.last_send, s.level_at = NEVER, NEVER, NEVER, NEVER, NEVER
  s.review_at, s.bucket, s.bucket_at, s.bucket_burst, s.bucket_slots, s.seen = FOREVER, 0, NEVER, 0, 0, NEVER
end

local function begin_epoch(now)
  s.epoch = string.format("%.6f/%.9f", now, random)
  s.settled_at, s.used, s.used_at, s.granted_before = NEVER, 0, NEVER, 0
end

-- Returns the seconds in which each client that waits for a slot asks once.
local function settle_time()
  return math.min(LONGEST_WAIT, window / ASKS_PER_WINDOW) + DELAY
end

local function settle(now)
  s.settled_at = now + settle_time()
  s.held_until = math.max(s.held_until, s.settled_at)
end

-- Returns whether each key has as many entries as were written. Older versions of the script did not store the numbers.
local function is_whole()
  for name, key in pairs(counted()) do
    if s.counted_at == s.seen and s[name] ~= redis.call("ZCARD", key) then
      return false
    end
  end
  return true
end

local function save_state()
  s.turn, s.counted_at = s.turn + 1, s.seen
  for name, key in pairs(counted()) do
    s[name] = redis.call("ZCARD", key)
  end
  local fields = {}
  for name, value in pairs(s) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  redis.call("HSET", STATE, unpack(fields))
  local keep = math.ceil(math.max(60 * window, timeout + 2 * window) / speed * 1000)
  for _, key in ipairs({STATE, SLOTS, UNANSWERED, ACCEPTED, CLIENTS}) do
    redis.call("PEXPIRE", key, keep)
  end
end

local function shift(key, seconds)
  for _, name in ipairs(redis.call("ZRANGE", key, 0, -1)) do
    redis.call("ZINCRBY", key, seconds, name)
  end
end

-- If Redis's clock was set back, or another Redis has taken over, shifts all times as if no time had passed.
local function follow_clock(now)
  local back = now - s.seen
  if back < 0 then
    for _, name in ipairs(TIMES) do
      if math.abs(s[name]) < 1e299 then
        s[name] = s[name] + back
      end
    end
    for name, value in pairs(s) do
      if name:sub(1, #HELD) == HELD then
        s[name] = value + back
      end
    end
    for _, key in ipairs({SLOTS, UNANSWERED, ACCEPTED, CLIENTS}) do
      shift(key, back)
    end
  end
  s.seen = now
end

-- Learning

local function pause()
  return math.min(LONGEST_PROBE_WAIT, (1 + random) * 2 ^ s.probes)
end

local function hold(till)
  s.mode, s.probe, s.held_until = HOLD, "", till
end

local function await_review(now)
  s.review_at, s.busy, s.clean = now + window, 0, 0
end

local function review(now)
  local busy, clean = s.busy, s.clean
  await_review(now)
  if s.mode ~= OPEN then
    return
  end
  s.slots_known, s.burst_known = s.slots, s.burst
  if busy == 0 then
    s.clean = clean
  elseif s.slots < s.ceiling then
    s.slots = s.slots + math.floor((s.ceiling - s.slots + 1) / 2)
  elseif clean + 1 < s.patience then
    s.clean = clean + 1
  elseif s.slots < s.limit then
    s.slots = math.min(s.limit, s.slots + s.step)
    s.ceiling, s.step = s.slots, s.step * 2
  elseif s.burst < s.limit then
    s.burst = math.min(s.limit, s.burst + math.max(1, math.floor(s.burst / 8)))
  end
end

local function undo_trial(now)
  if s.slots == s.slots_known and s.burst == s.burst_known then
    return false
  end
  s.slots, s.burst, s.ceiling = s.slots_known, s.burst_known, s.slots_known
  s.patience, s.step = math.min(MOST_PATIENCE, s.patience * 2), 1
  await_review(now)
  return true
end

local function learn_window(accepted)
  if accepted * 2 < s.slots then
    s.ceiling, s.slots = math.max(s.ceiling, s.slots), math.max(1, math.floor(s.slots / 2))
  else
    s.slots = math.max(1, math.min(s.slots, accepted))
    s.ceiling = s.slots
  end
end

local function learn(now)
  s.mode, s.probe = OPEN, ""
  local before = redis.call("ZCOUNT", ACCEPTED, string.format("(%.17g", s.cut_at - window), "+inf") - 1
  if s.probes == 0 and s.burst == s.limit then
    s.burst = math.max(1, math.min(s.burst, math.floor(s.level) - 1))
  else
    if s.probes == 0 then
      s.burst = math.max(1, math.floor(s.burst / 2))
    end
    learn_window(before)
  end
  s.slots_known, s.burst_known = s.slots, s.burst
  await_review(now)
end

-- Results of requests

-- Records the answer of a slot, which is free again one window later. Returns when the slot was taken.
local function leave(name, now)
  local sent_at = redis.call("ZSCORE", UNANSWERED, name)
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZADD", SLOTS, now + window + MARGIN, name)
  return tonumber(sent_at) or now
end

local handlers = {}  -- a function for each event of a report

function handlers.accepted(name, now)
  leave(name, now)
  if s.mode == OPEN then
    redis.call("ZREMRANGEBYSCORE", ACCEPTED, "-inf", now - window)
  end
  redis.call("ZADD", ACCEPTED, now, name)
  s.level = 1 + math.max(0, s.level - (now - s.level_at) * s.slots / window)
  s.level_at, s.proven, s.last_accepted = now, s.proven + 1, now
  if s.probe == name then
    learn(now)
  end
end

-- A long window is never probed. It is held for Retry-After, or until a window after the last accepted request.
local function refuse_long(name, now, retry_after)
  local till = s.last_accepted + window + MARGIN
  if retry_after > 0 then
    till = now + math.min(window, math.max(1, retry_after)) + MARGIN
  elseif till <= now then  -- then other clients use the budget
    till = now + window + MARGIN
  end
  s.refused = s.refused + 1
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZADD", SLOTS, till, name)
  s.held_until = math.max(s.held_until, till)
end

function handlers.rejected(name, now, retry_after)
  if window > SHORT_WINDOW then
    return refuse_long(name, now, retry_after)
  end
  local sent_at, asked = leave(name, now), now + math.min(window, retry_after)
  s.refused = s.refused + 1
  if s.probe == name then
    s.probes = s.probes + 1
    hold(math.max(asked, now + pause()))
  elseif s.mode ~= OPEN or sent_at < s.cut_at then
    s.held_until = math.max(asked, s.held_until)
  else
    s.probes, s.cut_at = 0, now
    s.held_until = math.max(asked, now + pause())
    if not undo_trial(now) then
      hold(s.held_until)
    end
  end
end

function handlers.lost(name, now)
  leave(name, now)
  if s.probe == name then
    hold(now + 1 + random)
  end
end

function handlers.unsent(name, now)
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZREM", SLOTS, name)
  if s.probe == name then
    hold(now)
  end
end

function handlers.limit(_, _, to)
  if s.configured ~= to then
    s.configured = to
    reset(to)
  end
end

-- The headers of a response: `LIMIT/REMAINING`, where each may be empty, and the seconds until the reset. They can only
-- lower the number of requests.
function handlers.headers(numbers, now, seconds)
  local stated, remaining = numbers:match("^(%d*)/(%d*)$")
  stated, remaining = tonumber(stated), tonumber(remaining)
  if stated and stated > 0 and math.min(stated, s.configured) ~= s.limit then
    reset(math.min(stated, s.configured))
  end
  if remaining and seconds > 0 then
    local over = s.slots - redis.call("ZCARD", SLOTS) - remaining
    for i = 1, over do
      redis.call("ZADD", SLOTS, now + math.min(seconds, window) + MARGIN, string.format("headers/%.6f/%d", now, i))
    end
  end
end

-- A 429 that names no budget holds the requests that charge the same budgets.
function handlers.held(name, now, seconds)
  s[HELD .. name] = math.max(s[HELD .. name] or NEVER, now + seconds)
end

-- Repeated reports of a window that Redis may have lost. `age`: seconds since the answer or the send. Data that Redis has
-- about the slot takes precedence, because it may come from the client that owns the slot.
function handlers.answered_before(name, now, age)
  if redis.call("ZREM", UNANSWERED, name) == 1 or not redis.call("ZSCORE", SLOTS, name) then
    redis.call("ZADD", SLOTS, now - age + window + MARGIN, name)
  end
end

function handlers.sent_before(name, now, age)
  if not redis.call("ZSCORE", SLOTS, name) then
    redis.call("ZADD", UNANSWERED, now - age, name)
    redis.call("ZADD", SLOTS, now - age + timeout + window + MARGIN, name)
  end
end

-- `count` slots of all clients were taken `age` seconds ago. The latest report counts.
function handlers.used_before(count, now, age)
  if now - age > s.used_at then
    s.used, s.used_at = tonumber(count), now - age
  end
end

function handlers.last_seen() end  -- `read_budgets` reads it

-- Adds slots for the clients that did not report again. Their answers count as arrived when the loss was detected, at
-- the latest: a client reports each later answer.
local function fill_up(now)
  local missing = s.used - (redis.call("ZCARD", SLOTS) - s.granted_before)
  local free_at = math.min(s.used_at + timeout, s.settled_at - settle_time()) + window + MARGIN
  for i = 1, free_at > now and missing or 0 do
    redis.call("ZADD", SLOTS, free_at, s.epoch .. "/" .. i)
  end
  s.used = 0
end

-- Permitted requests

local function advance(now)
  redis.call("ZREMRANGEBYSCORE", SLOTS, "-inf", now)
  redis.call("ZREMRANGEBYSCORE", UNANSWERED, "-inf", now - timeout)
  redis.call("ZREMRANGEBYSCORE", CLIENTS, "-inf", now - math.min(5 * window, LISTED))
  if s.used > 0 and now >= s.settled_at then
    fill_up(now)
  end
  if s.mode == PROBE and now >= s.probe_at + LAPSE then
    hold(now)
  end
  if now >= s.review_at then
    review(now)
  end
end

-- Returns when the bucket has a token. If B is less than W, the server uses a bucket.
local function token_at(now)
  if s.burst >= s.slots then
    return now
  end
  if s.bucket_burst ~= s.burst or s.bucket_slots ~= s.slots then
    s.bucket, s.bucket_at, s.bucket_burst, s.bucket_slots = 0, now, s.burst, s.slots
  end
  local rate = s.slots / window
  s.bucket = math.min(s.burst, s.bucket + (now - s.bucket_at) * rate)
  s.bucket_at = now
  return s.bucket > 1 - 1e-6 and now or now + (1 - s.bucket) / rate
end

local function next_at(now)
  if s.mode == PROBE then
    return now + RECHECK
  elseif s.held_until > now then
    return s.held_until
  elseif s.mode == HOLD then
    return now
  end
  local unanswered = redis.call("ZCARD", UNANSWERED)
  if window > SHORT_WINDOW and unanswered > 0 then
    return now + 4 * RECHECK
  end
  if s.proven < PROVEN and s.proven < s.slots
      and unanswered >= math.max(FEWEST_UNPROVEN, math.floor(s.proven / 2)) then
    return now + RECHECK
  end
  local over = redis.call("ZCARD", SLOTS) - s.slots
  if over >= 0 then
    s.busy = 1
    if s.was_full == 0 then
      s.was_full, s.proven = 1, 0
    end
    local free_at = tonumber(redis.call("ZRANGE", SLOTS, over, over, "WITHSCORES")[2])
    return math.min(free_at, now + window + MARGIN)  -- a slot without an answer may be answered at any time
  end
  local spread = math.min(SPREAD, window / (30 * s.limit))
  if s.proven < PROVEN and s.was_full == 1 then
    spread = spread * 2
  end
  return math.max(token_at(now), s.last_send + spread)
end

local function take(name, now)
  if s.mode == HOLD then
    s.mode, s.probe, s.probe_at = PROBE, name, now
  elseif s.burst < s.slots then
    s.bucket = math.max(0, s.bucket - 1)
  end
  redis.call("ZADD", UNANSWERED, now, name)
  redis.call("ZADD", SLOTS, now + timeout + window + MARGIN, name)
  s.last_send = now
end

-- One exchange

local now = tonumber(ARGV[6])
if not now then
  local time = redis.call("TIME")
  now = (time[1] + time[2] / 1e6) * speed
end

local budgets = {}

local function read_budgets()
  local at = 8
  for i = 1, (#KEYS - 1) / 4 do
    local budget = {keys = {}, state = {}, reports = {}, known = "", known_turn = 0, reports_again = false}
    budget.limit, budget.window = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    for part = 1, 4 do
      budget.keys[part] = KEYS[4 * (i - 1) + part]
    end
    local last = at + 2 + 3 * tonumber(ARGV[at + 2])
    for first = at + 3, last, 3 do
      local slot, event, seconds = ARGV[first], ARGV[first + 1], tonumber(ARGV[first + 2])
      if event == "last_seen" then
        budget.known, budget.known_turn = slot, seconds
      elseif event == "answered_before" or event == "sent_before" then
        budget.reports_again = true
      end
      budget.reports[#budget.reports + 1] = {slot, event, seconds}
    end
    budgets[i], at = budget, last + 1
  end
end

-- Loads the state of the present budget, detects whether Redis has lost data, and applies the reports.
local function open_budget(budget)
  local is_found = load_state()
  local is_damaged = is_found and not is_whole()
  if not is_found then
    new_state()
  end
  s.configured, s.last_accepted = s.configured or s.limit, s.last_accepted or NEVER  -- missing in the state of an older version
  if not s.epoch then  -- a new state, or that of an older version
    s.turn = 0
    begin_epoch(now)
  end
  follow_clock(now)
  budget.is_lost = budget.known ~= "" and (is_damaged or s.epoch ~= budget.known or s.turn < budget.known_turn)
  if is_damaged or (budget.is_lost and s.epoch == budget.known) then
    begin_epoch(now)
    settle(now)
  elseif s.settled_at == NEVER and (budget.is_lost or (budget.reports_again and not is_found)) then
    s.granted_before = is_found and redis.call("ZCARD", SLOTS) or 0
    settle(now)
  end
  advance(now)
  for _, report in ipairs(budget.reports) do
    handlers[report[2]](report[1], now, report[3])
  end
end

read_budgets()
local is_granted = want ~= ""
for _, budget in ipairs(budgets) do
  use(budget)
  open_budget(budget)
  budget.wait = 0
  if want ~= "" then
    budget.wait = math.max(0, next_at(now) - now, (s[HELD .. set] or NEVER) - now)
  end
  is_granted = is_granted and not budget.is_lost and budget.wait == 0
end
redis.call("ZADD", CLIENTS, now, client)

local replies = {}
for i, budget in ipairs(budgets) do
  use(budget)
  if is_granted then
    take(want, now)
  end
  save_state()
  replies[i] = {
    is_granted and 1 or 0, string.format("%.9f", budget.is_lost and 0 or budget.wait), s.slots, s.burst,
    redis.call("ZCARD", SLOTS), redis.call("ZCARD", CLIENTS), string.format("%.9f", math.max(0, s.held_until - now)),
    s.epoch, s.turn, budget.is_lost and 1 or 0,
  }
end
return replies

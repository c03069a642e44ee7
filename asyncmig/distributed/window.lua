-- One budget of one API key, for all processes that use it: asyncmig/_core/limiter.py, kept in Redis.
--
-- The rules are explained there, and have the same names here. What is different: who takes a slot may die. A slot
-- that is never answered is freed `timeout` and a window after it was taken, and a probe that is not answered in
-- `LAPSE` seconds is sent by somebody else.
--
-- KEYS  1 state (hash)  2 slots (by when they are free)  3 unanswered (by when they were taken)
--       4 accepted (by when)  5 clients (by when they were last heard of)
-- ARGV  1 client  2 limit  3 window  4 timeout  5 speed: the client's seconds in a second of Redis
--       6 a random number in [0, 1)  7 a new slot's name, or empty: nobody waits  8 the time, or empty: Redis's own
--       9... what has happened, three each: name, what, seconds
-- Returns granted (0, 1), seconds until it makes sense to ask again, W, B, slots taken, live clients, seconds of a
--         hold. All times are on Redis's clock, in the client's seconds.

local client, limit, window, timeout = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local speed, random, want = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local STATE, SLOTS, UNANSWERED, ACCEPTED, CLIENTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local MARGIN, SPREAD, FEWEST_UNPROVEN, PROVEN, MOST_PATIENCE = 0.05, 0.02, 4, 90, 16
local LONGEST_PROBE_WAIT, LONGEST_RETRY_AFTER, LAPSE = 8, 60, 10
local SETTLE = 2       -- seconds in which those who knew a window that Redis lost may tell of it
local RECHECK = 0.25   -- seconds until somebody else's answer may have changed what can be sent
local OPEN, HOLD, PROBE = 0, 1, 2
local NEVER, FOREVER = -1e300, 1e300
local TIMES = {"held_until", "cut_at", "probe_at", "last_send", "level_at", "review_at", "bucket_at", "seen"}

local s = {}

-- Reading and writing

local function load_state()
  local fields = redis.call("HGETALL", STATE)
  for i = 1, #fields, 2 do
    s[fields[i]] = fields[i] == "probe" and fields[i + 1] or tonumber(fields[i + 1])
  end
  return #fields > 0
end

local function reset(to)
  s.limit, s.slots, s.burst, s.ceiling = to, to, to, to
  s.slots_known, s.burst_known, s.patience, s.step = to, to, 1, 1
end

local function new_state()
  reset(limit)
  s.mode, s.probe, s.probes, s.proven, s.was_full, s.level, s.clean, s.busy, s.refused = OPEN, "", 0, 0, 0, 0, 0, 0, 0
  s.held_until, s.cut_at, s.probe_at, s.last_send, s.level_at = NEVER, NEVER, NEVER, NEVER, NEVER
  s.review_at, s.bucket, s.bucket_at, s.bucket_burst, s.bucket_slots, s.seen = FOREVER, 0, NEVER, 0, 0, NEVER
end

local function save_state()
  local fields = {}
  for name, value in pairs(s) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  redis.call("HSET", STATE, unpack(fields))
  local keep = math.ceil(math.max(60 * window, timeout + 2 * window) / speed * 1000)
  for _, key in ipairs(KEYS) do
    redis.call("PEXPIRE", key, keep)
  end
end

local function shift(key, seconds)
  for _, name in ipairs(redis.call("ZRANGE", key, 0, -1)) do
    redis.call("ZINCRBY", key, seconds, name)
  end
end

-- Redis's clock was set back, or another Redis took over: no time has passed, and none is lost.
local function follow_clock(now)
  local back = now - s.seen
  if back < 0 then
    for _, name in ipairs(TIMES) do
      if math.abs(s[name]) < 1e299 then
        s[name] = s[name] + back
      end
    end
    for i = 2, 5 do
      shift(KEYS[i], back)
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

-- What came of requests

-- Returns when the slot was taken, and whether it was known; it is free a window after its answer.
local function leave(name, now)
  local sent_at = redis.call("ZSCORE", UNANSWERED, name)
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZADD", SLOTS, now + window + MARGIN, name)
  return tonumber(sent_at) or now
end

local happened = {}

function happened.accepted(name, now)
  leave(name, now)
  if s.mode == OPEN then
    redis.call("ZREMRANGEBYSCORE", ACCEPTED, "-inf", now - window)
  end
  redis.call("ZADD", ACCEPTED, now, name)
  s.level = 1 + math.max(0, s.level - (now - s.level_at) * s.slots / window)
  s.level_at, s.proven = now, s.proven + 1
  if s.probe == name then
    learn(now)
  end
end

function happened.rejected(name, now, retry_after)
  local sent_at, asked = leave(name, now), now + math.min(LONGEST_RETRY_AFTER, retry_after)
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

function happened.lost(name, now)
  leave(name, now)
  if s.probe == name then
    hold(now + 1 + random)
  end
end

function happened.unsent(name, now)
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZREM", SLOTS, name)
  if s.probe == name then
    hold(now)
  end
end

function happened.limited(_, _, to)
  if s.limit ~= to then
    reset(to)
  end
end

-- Told again by those who knew a window that Redis may have lost: `age` seconds since the answer, or the send.
function happened.answered_before(name, now, age)
  redis.call("ZREM", UNANSWERED, name)
  redis.call("ZADD", SLOTS, now - age + window + MARGIN, name)
end

function happened.sent_before(name, now, age)
  redis.call("ZADD", UNANSWERED, now - age, name)
  redis.call("ZADD", SLOTS, now - age + timeout + window + MARGIN, name)
end

-- What may be sent

local function advance(now)
  redis.call("ZREMRANGEBYSCORE", SLOTS, "-inf", now)
  redis.call("ZREMRANGEBYSCORE", UNANSWERED, "-inf", now - timeout)
  redis.call("ZREMRANGEBYSCORE", CLIENTS, "-inf", now - 5 * window)
  if s.mode == PROBE and now >= s.probe_at + LAPSE then
    hold(now)
  end
  if now >= s.review_at then
    review(now)
  end
end

-- Returns when a token of the bucket is there; the server has one where B is less than W.
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
    return math.min(free_at, now + window + MARGIN)  -- an unanswered one may be answered now
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

-- One turn

local now = tonumber(ARGV[8])
if not now then
  local time = redis.call("TIME")
  now = (time[1] + time[2] / 1e6) * speed
end
if not load_state() then
  new_state()
  for i = 9, #ARGV, 3 do
    if ARGV[i + 1] == "answered_before" or ARGV[i + 1] == "sent_before" then
      s.held_until = now + SETTLE
    end
  end
end
follow_clock(now)
advance(now)
for i = 9, #ARGV, 3 do
  happened[ARGV[i + 1]](ARGV[i], now, tonumber(ARGV[i + 2]))
end
redis.call("ZADD", CLIENTS, now, client)

local granted, wait = 0, 0
if want ~= "" then
  local at = next_at(now)
  if at <= now then
    granted = 1
    take(want, now)
  else
    wait = at - now
  end
end
save_state()
return {
  granted, string.format("%.9f", wait), s.slots, s.burst, redis.call("ZCARD", SLOTS),
  redis.call("ZCARD", CLIENTS), string.format("%.9f", math.max(0, s.held_until - now)),
}

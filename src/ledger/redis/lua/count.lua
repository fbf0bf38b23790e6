-- Counts durable events, each once however often it is told, and ends the holds of their requests.
-- ask: events [[id, hold ('' for none), key, user, at, used]]; limits as decide.lua has them, whose states are wanted;
--      drain: they are about to be written to the store; only_here: what is not counted yet stays so, and is named

local stop = refused(false)
if stop then return stop end
open_tenant()

local judged, absent, ended = {}, {}, 0
for index = 1, #ask.events do
  local id, hold, key, user, at, used = unpack(ask.events[index])
  if hold ~= '' and end_hold(hold) then ended = ended + 1 end
  local is_draining = redis.call('HEXISTS', ROOT .. 'g', id) == 1
  local is_waiting = not is_draining and redis.call('HEXISTS', ROOT .. 'e', id) == 1
  local is_gone = not is_draining and not is_waiting and was_forgotten(id)
  local is_counted = is_draining or is_waiting or is_gone
  if not is_counted and ask.only_here then
    absent[#absent + 1] = id
  elseif not is_counted then
    visit(key, user, at, used, function(counter, quantity)
      counter[SETTLED] = clamp(counter[SETTLED] + quantity)
      if counter[HARD] >= 0 then
        judged[#judged + 1] = { counter[FEATURE], counter[SETTLED], counter[HARD] }
      end
    end)
    note_event_at(at)
  end
  if is_waiting and ask.drain or not is_counted and not ask.only_here then
    local name = 'e'
    if ask.drain then
      -- From now on it may be in the store: whoever reads sums from there has to look.
      name = 'g'
      if is_waiting then redis.call('HDEL', ROOT .. 'e', id) end
    end
    redis.call('HSET', ROOT .. name, id, cmsgpack.pack({ key, user, at, used }))
  end
end
if ask.drain then
  tenant.drains = tenant.drains + 1
  save_tenant()
  judged = {}
end

local states = {}
for index = 1, #ask.limits do
  local counter = find(ask.limits[index][1], ask.limits[index][2])
  if counter then
    states[#states + 1] = { index - 1, counter[SETTLED], counter[RESERVED] }
  end
end
save_subjects()
return answer({
  status = 'counted', now = now, absent = absent, judged = judged, standings = states, ended = ended,
})

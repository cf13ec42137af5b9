--- What scripts/bench has measured, as Markdown tables, as docs/benchmarks.md, and as plots by gnuplot. It measures nothing.
-- @module bench.page

local peers = require "bench.peers"
local process = require "bench.process"
local uv = require "luv"

local page = {}

-- ---- figures ------------------------------------------------------------------------------------------------------------------

--- The median of a list, with the least and the greatest.
local function median(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  return (sorted[(#sorted + 1) // 2] + sorted[#sorted // 2 + 1]) / 2, sorted[1], sorted[#sorted]
end

--- What is held against the goal, round by round: the ratio to the peer, or the value itself.
local function judged(comparison)
  if comparison.against == nil then return comparison.own end
  local list = {}
  for i, other in ipairs(comparison.other or {}) do list[i] = comparison.own[i] / other end
  return list
end

local function is_met(comparison, value)
  local sense, limit = comparison.goal[1], comparison.goal[2]
  if sense == "<=" then return value <= limit end
  return value >= limit
end

local function goal_text(comparison)
  local sense, limit, text = table.unpack(comparison.goal)
  return ("%s %s%s"):format(sense == "<=" and "≤" or "≥", text or limit, comparison.against and " ×" or "")
end

local function shown(comparison, list) return list and list[1] and comparison.shown:format(median(list)) or "–" end

local function digits(value) return value < 0.1 and "%.3f" or "%.2f" end

-- The ratio (the value, where there is no peer) with its least and greatest.
local function measured_text(comparison)
  local list = judged(comparison)
  if #list == 0 then return "not measured" end
  local middle, least, most = median(list)
  local form = comparison.against and digits(middle) or comparison.shown
  if #list == 1 then return ("**" .. form .. "**"):format(middle) end
  return ("**%s** (%s … %s)"):format(form, form, form):format(middle, least, most)
end

local function verdict(comparison)
  local list = judged(comparison)
  return #list == 0 and "–" or is_met(comparison, median(list)) and "yes" or "**no**"
end

-- ---- tables -------------------------------------------------------------------------------------------------------------------

local HEAD = "| row | of korv | against | korv | peer | ratio |"
local GOALS = { head = HEAD .. " goal | met |\n|---|---|---|---|---|---|---|---|\n", has = function(c) return c.goal ~= nil end }
local TOLD = { head = HEAD .. "\n|---|---|---|---|---|---|\n", has = function(c) return c.goal == nil end }

local function line(row, c)
  local text = ("| %s (`%s`) | %s | %s | %s | %s | %s |"):format(row.title, row.name, c.what, c.against or "–", shown(c, c.own),
    c.against and shown(c, c.other) or "–", measured_text(c))
  if c.goal then text = ("%s %s | %s |"):format(text, goal_text(c), verdict(c)) end
  return text .. "\n"
end

-- The comparisons of one kind, over all rows. A row that has failed is among the goals.
local function table_of(measured, kind)
  local lines = {}
  for _, one in ipairs(measured) do
    for _, comparison in ipairs(one.comparisons) do
      if kind.has(comparison) then lines[#lines + 1] = line(one.row, comparison) end
    end
    if one.problem and kind == GOALS then
      lines[#lines + 1] = ("| %s (`%s`) | – | – | – | – | not measured: %s | – | – |\n"):format(one.row.title, one.row.name, one.problem)
    end
  end
  return #lines > 0 and kind.head .. table.concat(lines) or ""
end

--- Both tables.
-- @tparam {table,...} measured of each a `row` and its `comparisons`
-- @treturn string
function page.tables(measured)
  local goals, told = table_of(measured, GOALS), table_of(measured, TOLD)
  return goals .. (goals ~= "" and told ~= "" and "\n" or "") .. told
end

-- What each generator of load took, beside the server that it asked.
local function loads_of(measured)
  local lines, last = {}, nil
  local function add(row, server, c, load, cost)
    if not load then return end
    lines[#lines + 1] = ("| `%s` | %s | %s | %s |\n"):format(row.name, server, shown(c, load), shown(c, cost))
  end
  for _, one in ipairs(measured) do
    for _, c in ipairs(one.comparisons) do
      if one ~= last and c.own_load then
        add(one.row, c.server or "korv", c, c.own_load, c.own)
        last = one
      end
      add(one.row, c.against, c, c.other_load, c.other)
    end
  end
  return "| row | server | the load generator's CPU µs a request | the server's |\n|---|---|---|---|\n" .. table.concat(lines)
end

-- ---- plots --------------------------------------------------------------------------------------------------------------------

local STYLE = [[
set terminal svg size 860,%d dynamic background rgb "white" font "sans-serif,12"
set output "%s/docs/%s"
set grid
]]

local function gnuplot(name, height, script)
  process.run { "gnuplot", process.write(peers.path "plot.gp", STYLE:format(height, peers.root, name) .. script) }
end

local function quoted(text) return '"' .. text:gsub('"', '\\"') .. '"' end

local function label_of(row, c)
  return quoted(("%s: %s%s"):format(row.name, c.what, c.against and " / " .. c.against or ""))
end

-- How far each round is from its goal: what is met is left of 1.
local function plot_goals(measured)
  local data, labels = {}, {}
  for _, one in ipairs(measured) do
    for _, c in ipairs(one.comparisons) do
      local list = c.goal and judged(c) or {}
      if #list > 0 then labels[#labels + 1] = ("%s %d"):format(label_of(one.row, c), #labels) end
      for _, value in ipairs(list) do
        local part = c.goal[1] == "<=" and value / c.goal[2] or c.goal[2] / value
        data[#data + 1] = ("%g %d %d"):format(part, #labels - 1, is_met(c, value) and 0 or 1)
      end
    end
  end
  gnuplot("benchmark-goals.svg", 90 + 26 * #labels, ([[
set title "Each round against its goal: left of the line it is met"
set logscale x
set xrange [0.1:10]
set yrange [%d:-1]
set ytics (%s)
set xlabel "part of the goal"
unset key
set arrow from 1, graph 0 to 1, graph 1 nohead lw 2 lc rgb "#666666"
set palette defined (0 "#2a7f3f", 1 "#b3261e")
set cbrange [0:1]
unset colorbox
$data << EOD
%s
EOD
plot $data using 1:2:3 with points pt 7 ps 0.6 lc palette
]]):format(#labels, table.concat(labels, ", "), table.concat(data, "\n")))
end

local function bar(at, c, list, is_own)
  local middle = median(list)
  return ("%d %g %d %s"):format(at, middle, is_own, c.shown:format(middle))
end

-- Bars of the medians of one figure: korv's own, then each peer's, for each row.
local function plot_bars(name, title, measured, whats)
  local data, tics, at = {}, {}, 0
  for _, one in ipairs(measured) do
    local own_of = {}
    for _, c in ipairs(one.comparisons) do
      if whats[c.what] and c.own and c.other and c.against ~= "at rest" then
        if not own_of[c.what] then
          own_of[c.what] = true
          at = at + 1
          data[#data + 1] = bar(at, c, c.own, 1)
          tics[#tics + 1] = ("%s %d"):format(quoted(("%s, %s%s"):format(one.row.name, c.server or "korv", whats[c.what])), at)
        end
        at = at + 1
        data[#data + 1] = bar(at, c, c.other, 0)
        tics[#tics + 1] = ("%s %d"):format(quoted(("%s%s"):format(c.against, whats[c.what])), at)
      end
    end
    if next(own_of) then at = at + 1 end
  end
  gnuplot(name, 90 + 24 * at, ([[
set title "%s"
set logscale x
set yrange [%d:0]
set ytics (%s)
set xtics nomirror
set grid noytics
unset key
set palette defined (0 "#8c8c8c", 1 "#1f5fa8")
set cbrange [0:1]
unset colorbox
set lmargin 30
set rmargin 9
$data << EOD
%s
EOD
set xrange [%s:*]
plot $data using (0):1:(0):2:($1-0.4):($1+0.4):3 with boxxyerror fs solid 0.9 lc palette, \
  $data using 2:1:4 with labels left offset 1,0
]]):format(title, at, table.concat(tics, ", "), table.concat(data, "\n"), whats.from))
end

local function plot_all(measured)
  plot_goals(measured)
  plot_bars("benchmark-cpu.svg", "The server's CPU time for each request, µs (logarithmic)", measured,
    { ["CPU µs a request"] = "", from = 0.1 })
  plot_bars("benchmark-latency.svg", "Latency, µs (logarithmic)", measured, { ["p50 µs"] = " p50", ["p99 µs"] = " p99", from = 10 })
end

-- ---- the page -----------------------------------------------------------------------------------------------------------------

local PAGE = process.read(peers.root .. "/spec/bench/page.md")

local function version_of(...)
  local ran, output = pcall(process.run, { ... })
  return ran and output:match "%d[%w.]*%.[%w.]*" or "not there"
end

local function machine()
  local cpu = uv.cpu_info()
  return ("%s, %d CPUs, %s, Linux %s"):format(cpu[1].model, #cpu,
    process.read "/etc/os-release":match 'PRETTY_NAME="([^"]*)"' or "unknown system", uv.os_uname().release)
end

local function package_version(name) return version_of("dpkg-query", "-W", "-f", "${Version}", name) end

--- Writes docs/benchmarks.md and its plots.
-- @tparam {table,...} measured
-- @number rounds
function page.write(measured, rounds)
  local values = {
    GOALS = table_of(measured, GOALS), TOLD = table_of(measured, TOLD), LOADS = loads_of(measured), ROUNDS = tostring(rounds),
    MACHINE = machine(), DATE = os.date "!%Y-%m-%d", LIBSSH = package_version "libssh-4", NGINX = package_version "nginx",
    GO = package_version "golang-go", CRYPTO = package_version "golang-golang-x-crypto-dev",
    ASYNCSSH = package_version "python3-asyncssh", OPENSSH = package_version "openssh-server", CJSON = package_version "lua-cjson",
  }
  process.write(peers.root .. "/docs/benchmarks.md", (PAGE:gsub("@(%u+)@", values)))
  plot_all(measured)
end

return page

--- Draws a flame graph: what `perf script` prints on stdin, as an SVG on stdout.
--
-- $ perf record --call-graph dwarf … && perf script | lua5.4 spec/bench/flame.lua TITLE > flame.svg
--
-- A frame is as wide as its share of the samples, and stands on the one that called it; order from left to right means nothing. Frames
-- without a name of their own are named by their library, and the same one on the same is one.
-- @script flame

local WIDTH, FRAME_HEIGHT, LEAST_WIDTH, LETTER_WIDTH = 1200, 16, 1, 6.6
local COLOURS = { kernel = "#d9a441", libcrypto = "#8d6fb8", libssh = "#5b8fd1", lua = "#5fa55a", core = "#d0604c", libc = "#9a9a9a" }
local OTHER = "#c9c2b4"

local function library_of(path)
  if path == "inlined" then return end -- its caller's
  if path:find "kernel" then return "kernel" end
  local name = path:match "([^/]+)$" or path
  return name:match "^lib%l+" or name:match "^%l+" or "unknown"
end

-- A frame's line: address, name+offset, (file).
local function frame_of(line)
  local name, path = line:match "^%s+%x+ (.-) %((.-)%)$"
  if not name then return end
  local library = library_of(path)
  name = name:gsub("%+0x%x+$", "")
  if name == "[unknown]" then name = library or "unknown" end
  return name, library
end

local function add(root, stack)
  local node = root
  node.count = node.count + 1
  for i = #stack, 1, -1 do
    local frame = stack[i]
    if frame.name ~= node.name then
      local child = node.children[frame.name]
      if not child then
        child = { name = frame.name, library = frame.library or node.library, count = 0, children = {} }
        node.children[frame.name] = child
      end
      child.count = child.count + 1
      node = child
    end
  end
end

-- Samples are paragraphs: a head, then the frames, innermost first.
local function read_samples(file)
  local root, stack = { name = "all", library = "all", count = 0, children = {} }, {}
  for line in file:lines() do
    local name, library = frame_of(line)
    if name then
      stack[#stack + 1] = { name = name, library = library }
    elseif line == "" and #stack > 0 then
      add(root, stack)
      stack = {}
    end
  end
  return root
end

local function escaped(text) return (text:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" })) end

local function depth_of(node, per_sample)
  local deepest = 0
  for _, child in pairs(node.children) do
    if child.count * per_sample >= LEAST_WIDTH then deepest = math.max(deepest, depth_of(child, per_sample)) end
  end
  return deepest + 1
end

local function sorted(children)
  local list = {}
  for _, child in pairs(children) do list[#list + 1] = child end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

local RECTANGLE = '<g><title>%s (%s): %.1f %%</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>%s</g>\n'
local LABEL = '<text x="%.1f" y="%d">%s</text>'

local function draw(node, x, y, total, out)
  local width = node.count / total * WIDTH
  if width < LEAST_WIDTH then return end
  local letters = math.floor((width - 4) / LETTER_WIDTH)
  local label = letters >= 3 and LABEL:format(x + 2, y + 12, escaped(node.name:sub(1, letters))) or ""
  out[#out + 1] = RECTANGLE:format(escaped(node.name), node.library, 100 * node.count / total, x, y, width - 0.3, FRAME_HEIGHT - 1,
    COLOURS[node.library] or OTHER, label)
  for _, child in ipairs(sorted(node.children)) do
    draw(child, x, y - FRAME_HEIGHT, total, out)
    x = x + child.count / total * WIDTH
  end
end

local root = read_samples(io.stdin)
if root.count == 0 then
  io.stderr:write "no samples\n"
  os.exit(1)
end
local height = (depth_of(root, WIDTH / root.count) + 2) * FRAME_HEIGHT
local out = { ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="11">\n'):format(WIDTH,
  height), ('<rect width="%d" height="%d" fill="white"/><text x="4" y="13">%s</text>\n'):format(WIDTH, height,
  escaped(arg[1] or "flame graph")) }
draw(root, 0, height - FRAME_HEIGHT, root.count, out)
out[#out + 1] = "</svg>\n"
io.write(table.concat(out))

// Owns the charts: lines over the last minutes, as SVG without a library. The colours are those of the theme.
import { spanOf } from '../model/usage';
import type { Point } from '../model/usage';

const WIDTH = 600;

type Value = (point: Point) => number | undefined;

/** Returns the points of a line, without those whose value is not known. The newest point is at the right edge. */
function line(points: readonly Point[], value: Value, top: number, height: number): string {
    const end = points.at(-1)?.time ?? 0;
    const span = spanOf(points);
    return points.flatMap(point => {
        const known = value(point);
        if (known === undefined) return [];
        const x = WIDTH * (1 - (end - point.time) / span);
        const y = height * (1 - Math.min(known, top) / top);
        return [`${x.toFixed(1)},${y.toFixed(1)}`];
    }).join(' ');
}

/** Returns the points of a line of whole numbers, which change at once. */
function steps(points: readonly Point[], value: Value, top: number, height: number): string {
    const doubled = points.flatMap((point, index) => {
        const before = points[index - 1];
        return before ? [{ ...before, time: point.time }, point] : [point];
    });
    return line(doubled, value, top, height);
}

function area(points: readonly Point[], value: Value, top: number, height: number): string {
    const end = points.at(-1)?.time ?? 0;
    const begin = points.find(point => value(point) !== undefined)?.time ?? end;
    const left = WIDTH * (1 - (end - begin) / spanOf(points));
    return `${left.toFixed(1)},${height} ${line(points, value, top, height)} ${WIDTH},${height}`;
}

interface SparklineProps { points: readonly Point[]; top: number }

/** A small chart of the used CPU time, for lists. The text beside it has the value. */
export function Sparkline({ points, top }: SparklineProps) {
    return (
        <svg className="vcpud-sparkline" viewBox={`0 0 ${WIDTH} 24`} preserveAspectRatio="none" aria-hidden="true">
            {points.length > 1 && <polygon className="vcpud-area" points={area(points, one => one.used, top, 24)} />}
            {points.length > 1 && <polyline className="vcpud-used" points={line(points, one => one.used, top, 24)} />}
        </svg>
    );
}

interface UseChartProps { points: readonly Point[]; top: number; label: string }

const HEIGHT = 160;
const LINES: [string, Value][] = [
    ['vcpud-used', point => point.used],
    ['vcpud-stolen', point => point.stolen],
    ['vcpud-throttled', point => point.throttled],
];

/** The chart of a machine: the number of vCPUs, and how much CPU time they used and waited for. */
export function UseChart({ points, top, label }: UseChartProps) {
    return (
        <div className="vcpud-chart">
            <div className="vcpud-axis" aria-hidden="true"><span>{top}</span><span>0</span></div>
            <svg viewBox={`0 -2 ${WIDTH} ${HEIGHT + 4}`} preserveAspectRatio="none" role="img" aria-label={label}>
                {[0, HEIGHT / 2, HEIGHT].map(y => <line key={y} className="vcpud-grid" x1="0" x2={WIDTH} y1={y} y2={y} />)}
                {points.length > 0 &&
                    <polygon className="vcpud-area" points={area(points, one => one.used, top, HEIGHT)} />}
                <polyline className="vcpud-vcpus" points={steps(points, one => one.vcpus, top, HEIGHT)} />
                {LINES.map(([name, value]) =>
                    <polyline key={name} className={name} points={line(points, value, top, HEIGHT)} />)}
            </svg>
        </div>
    );
}
